// Where things live in the bucket. Every key of a payload begins with its tenant.

/** `<prefix>tenants/<tenant>/` : all that belongs to one tenant, closing slash included. */
export function tenantPrefix(prefix: string, tenantId: string): string {
  return `${prefix}tenants/${tenantId}/`
}

/**
 * Key of a new object: `<prefix>tenants/<tenant>/<kind>/<YYYY>/<MM>/<DD>/<id>.<extension>`, the day in UTC.
 * Ids are random, so no key is ever written twice (R2 takes one write a second per key).
 */
export function objectKey(
  prefix: string,
  tenantId: string,
  kind: string,
  day: Date,
  id: string,
  extension: string,
): string {
  const path = day.toISOString().slice(0, 10).replaceAll('-', '/')
  return `${tenantPrefix(prefix, tenantId)}${kind}/${path}/${id}.${extension}`
}

/** Parts of a path that a store, or a proxy before it, may resolve to another key; and what no key of ours has. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const oddPart = /(^|[/\\])(\.|%2e){0,2}([/\\]|$)|[\u0000-\u001f\u007f]/i

/**
 * Whether a key may be named in a request on behalf of the tenant. Rows are written by others too, so each key is
 * judged before anything is sent: it must lie under the tenant's prefix, and lead nowhere else from there.
 */
export function isTenantKey(prefix: string, tenantId: string, key: string): boolean {
  const start = tenantPrefix(prefix, tenantId)
  return key.startsWith(start) && !oddPart.test(key.slice(start.length))
}

/** `isTenantKey` in SQL. `prefix` is the SQL of the configured prefix. */
export function isTenantKeySql(prefix: string, tenantId: string, key: string): string {
  const start = `${prefix} || 'tenants/' || ${tenantId} || '/'`
  return `(starts_with(${key}, ${start})
    and substr(${key}, length(${start}) + 1) !~* '(^|[/\\\\])(\\.|%2e){0,2}([/\\\\]|$)|[\\x01-\\x1f\\x7f]')`
}

/** The object that says which installation writes under this prefix. */
export function ownerKey(prefix: string): string {
  return `${prefix}pg-lighter-owner.json`
}

/** Never written: a PUT of it on a condition that can't hold tells whether the store would take one. */
export function probeKey(prefix: string): string {
  return `${prefix}pg-lighter-probe`
}
