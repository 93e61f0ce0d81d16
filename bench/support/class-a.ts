// Requests that R2 bills as class A and that an offload makes: https://developers.cloudflare.com/r2/pricing/

/** @param operation S3's name for it, as the store is told */
export const isClassA = (operation: string): boolean =>
  /^(PutObject|CreateMultipartUpload|UploadPart|CompleteMultipartUpload)$/.test(operation)
