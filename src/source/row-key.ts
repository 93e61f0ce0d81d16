// The text form of a row's key, as in sql/functions/12_keys_and_tenants.sql. One key has one text, and one text is one key.

/**
 * @param parts the text form of each column of the key, in the key's order
 * @returns of one column its text, of several a JSON array of their texts
 */
export function rowKey(parts: readonly [string, ...string[]]): string {
  return parts.length === 1 ? parts[0] : JSON.stringify(parts)
}

/**
 * Inverse of `rowKey`.
 * @param columns how many the key has
 * @returns null when it is not the text form of such a key
 */
export function rowKeyParts(key: string, columns: number): string[] | null {
  if (columns === 1) return [key]
  let parts: unknown
  try {
    parts = JSON.parse(key)
  } catch {
    return null
  }
  if (!Array.isArray(parts) || parts.length !== columns || !parts.every(isText)) return null
  return JSON.stringify(parts) === key ? parts : null
}

/** What Postgres can have as a text. */
const isText = (part: unknown): part is string =>
  typeof part === 'string' && !part.includes('\0') && part.isWellFormed()
