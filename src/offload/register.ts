// Step 4: tell Postgres of objects before their first byte is sent. Whatever happens from here on, every
// object in the bucket is known, and the orphan sweep need not list the bucket.
import type { Queryable } from '../db/pool.ts'
import { StoreError } from '../errors.ts'
import { LeaseLost } from './lease.ts'
import type { BuiltObject } from './pack.ts'

export type ObjectToRegister = Pick<
  BuiltObject,
  'tenantId' | 'kind' | 'key' | 'contentType' | 'contentEncoding'
> & {
  artifactCount: number
  /** Null while a stream's length is not known. */
  byteLength: number | null
  /** Of all its artifacts, uncompressed; null likewise. */
  payloadBytes: number | null
}

/**
 * One statement however many objects. They are orphans `leaseMs` from now unless the lease is extended or they are committed.
 * @param leaseId of the batch that they are for
 * @throws {LeaseLost} the batch is another daemon's by now; none is registered
 */
export async function registerObjects(
  db: Queryable,
  objects: ObjectToRegister[],
  leaseMs: number,
  leaseId: string | null = null,
): Promise<void> {
  const { rowCount } = await db.query({
    text: `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, content_encoding, artifact_count, byte_length, payload_bytes, lease_until)
     select d.tenant_id, d.r2_key, d.kind, 'uploading', d.content_type, d.content_encoding, d.artifact_count, d.byte_length, d.payload_bytes,
            now() + $8 * interval '1 ms'
       from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::int[], $7::bigint[], $9::bigint[])
         as d(tenant_id, r2_key, kind, content_type, content_encoding, artifact_count, byte_length, payload_bytes)
      where $10::uuid is null or exists (select from lighter.leases l where l.id = $10)`,
    prepare: true,
    values: [
      objects.map(o => o.tenantId),
      objects.map(o => o.key),
      objects.map(o => o.kind),
      objects.map(o => o.contentType),
      objects.map(o => o.contentEncoding),
      objects.map(o => o.artifactCount),
      objects.map(o => o.byteLength),
      leaseMs,
      objects.map(o => o.payloadBytes),
      leaseId,
    ],
  })
  if (rowCount !== objects.length) throw new LeaseLost()
}

/**
 * Objects that were uploaded, and then found to have been swept, row and all: whatever landed late is on record again,
 * and on its way out.
 */
export async function registerForDeletion(
  db: Queryable,
  objects: { tenantId: string; key: string }[],
): Promise<void> {
  await db.query(
    `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, artifact_count, delete_after)
     select d.tenant_id, d.r2_key, 'unknown', 'deleting', 'application/octet-stream', 1, now()
       from unnest($1::uuid[], $2::text[]) d(tenant_id, r2_key)
         on conflict do nothing`,
    [objects.map(o => o.tenantId), objects.map(o => o.key)],
  )
}

/**
 * Notes the multipart upload that was opened for a registered object, so that the orphan sweep can abort it.
 * @throws {StoreError} `object_swept`: the sweep has it already, and would not see the upload any more
 */
export async function recordUploadId(
  db: Queryable,
  tenantId: string,
  key: string,
  uploadId: string,
): Promise<void> {
  const { rowCount } = await db.query(
    `update lighter.objects set upload_id = $3 where tenant_id = $1 and r2_key = $2 and state = 'uploading'`,
    [tenantId, key, uploadId],
  )
  if (rowCount === 0) {
    throw new StoreError('object_swept', `${key} was taken for an orphan before its first part was sent`, {
      retryable: true,
    })
  }
}
