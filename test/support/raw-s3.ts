// The store's multipart calls one by one, as a program without ours makes them: for comparison, and for uploads that
// tests leave open.
import {
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  S3Client,
  UploadPartCommand,
} from '@aws-sdk/client-s3'
import type { StoreConfig } from '../../src/config.ts'

export function openRawS3({ endpoint, bucket: Bucket, accessKeyId, secretAccessKey }: StoreConfig) {
  const client = new S3Client({
    endpoint,
    region: 'auto',
    forcePathStyle: true,
    credentials: { accessKeyId, secretAccessKey },
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
    // The simulator never answers 100, which the SDK would wait for six seconds before each part.
    expectContinueHeader: false,
  })
  return {
    /** @returns the upload's id */
    createMultipart: async (Key: string): Promise<string> => {
      const { UploadId } = await client.send(new CreateMultipartUploadCommand({ Bucket, Key }))
      if (UploadId === undefined) throw new Error('CreateMultipartUpload answered without UploadId')
      return UploadId
    },
    /** @returns the part's ETag */
    uploadPart: async (Key: string, UploadId: string, PartNumber: number, Body: Buffer) =>
      (await client.send(new UploadPartCommand({ Bucket, Key, UploadId, PartNumber, Body }))).ETag,
    completeMultipart: (Key: string, UploadId: string, etags: (string | undefined)[]) =>
      client.send(
        new CompleteMultipartUploadCommand({
          Bucket,
          Key,
          UploadId,
          MultipartUpload: { Parts: etags.map((ETag, i) => ({ ETag, PartNumber: i + 1 })) },
        }),
      ),
    close: () => client.destroy(),
  }
}
