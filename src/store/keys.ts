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

/**
 * The tenant whose prefix a key lies under; null when it lies under none. A key with two is of the first, and one
 * with a part that some store may resolve is of none.
 */
export function tenantOfKey(key: string): string | null {
  if (/(?:^|\/)\.{0,2}(?:\/|$)/.test(key)) return null
  return /(?:^|\/)tenants\/([^/]+)\//.exec(key)?.[1] ?? null
}

/** The object that says which installation writes under this prefix. */
export function ownerKey(prefix: string): string {
  return `${prefix}pg-lighter-owner.json`
}

/** Never written: a PUT of it on a condition that can't hold tells whether the store would take one. */
export function probeKey(prefix: string): string {
  return `${prefix}pg-lighter-probe`
}
