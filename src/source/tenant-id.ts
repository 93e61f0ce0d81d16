// Tenants that are named by texts, as in sql/functions/12_keys_and_tenants.sql.
import { createHash } from 'node:crypto'
import { asTenantId, type TenantId } from '../ids.ts'

/**
 * UUIDv8 of the SHA-256 of namespace and name (RFC 9562, B.2). Postgres itself has no SHA-1, which version 5 would need.
 * @param namespace uuid of what names the tenants: project 1 and account 1 are different tenants
 */
export function tenantIdOf(namespace: string, name: string): TenantId {
  const bytes = createHash('sha256')
    .update(Buffer.from(namespace.replaceAll('-', ''), 'hex'))
    .update(name, 'utf8')
    .digest()
    .subarray(0, 16)
  bytes.writeUInt8((bytes.readUInt8(6) & 0x0f) | 0x80, 6)
  bytes.writeUInt8((bytes.readUInt8(8) & 0x3f) | 0x80, 8)
  const hex = bytes.toString('hex')
  return asTenantId(
    [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-'),
  )
}
