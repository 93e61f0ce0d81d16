// Step 4: tell Postgres of objects before their first byte is sent. Whatever happens from here on, every
// object in the bucket is known, and the orphan sweep need not list the bucket.
import { type Columns, namesOf, parameters } from '../db/parameters.ts'
import type { Queryable } from '../db/pool.ts'
import { StoreError } from '../errors.ts'
import { LeaseLost } from './lease.ts'
import type { BuiltObject } from './pack.ts'

export type ObjectToRegister = Pick<
  BuiltObject,
  'tenantId' | 'kind' | 'otherKinds' | 'key' | 'contentType' | 'contentEncoding'
> & {
  artifactCount: number
  /** Null while a stream's length is not known. */
  byteLength: number | null
  /** Of all its artifacts, uncompressed; null likewise. */
  payloadBytes: number | null
}

const objectColumns: Columns<ObjectToRegister> = {
  tenant_id: ['uuid', o => o.tenantId],
  r2_key: ['text', o => o.key],
  kind: ['text', o => o.kind],
  content_type: ['text', o => o.contentType],
  content_encoding: ['text', o => o.contentEncoding],
  artifact_count: ['int', o => o.artifactCount],
  byte_length: ['bigint', o => o.byteLength],
  payload_bytes: ['bigint', o => o.payloadBytes],
}

const otherKinds: Columns<ObjectToRegister> = {
  other_kinds: ['text', ({ otherKinds = [] }) => (otherKinds.length === 0 ? null : otherKinds.join(','))],
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
  const p = parameters()
  const { rowCount } = await db.query({
    text: `insert into lighter.objects (state, lease_until, ${namesOf(objectColumns)}, other_kinds)
     select 'uploading', now() + ${p.one(leaseMs)} * interval '1 ms', ${namesOf(objectColumns)}, string_to_array(other_kinds, ',')
       from ${p.unnest(objects, { ...objectColumns, ...otherKinds })} as d(${namesOf({ ...objectColumns, ...otherKinds })})
      where ${p.one(leaseId)}::uuid is null or exists (select from lighter.leases l where l.id = ${p.one(leaseId)})`,
    prepare: true,
    values: p.values,
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
