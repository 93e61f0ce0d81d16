// Pointers in the text of a payload, as lighter.pointers_in_text finds them in a row. More may be found than is a pointer:
// that keeps an artifact longer than it need be.

/**
 * Only a payload that has one of these can have a pointer: the end of every name, or a name that is written with escapes.
 * @param columns names of pointer columns: a row that is copied as JSON has its pointer under one
 */
export const pointerMarks = (columns: string[]): string[] => [
  ...['_ref', ...columns].flatMap(name => [`${name}"`, `${name}\\`]),
  '\\u',
]

/**
 * Every uuid in the payload under a name that may be a pointer's, at any depth, also in JSON that is a string of other JSON;
 * or, of escaped names, any name.
 */
export function pointersInPayload(payload: Buffer, columns: string[] = []): string[] {
  if (!pointerMarks(columns).some(mark => payload.includes(mark))) return []
  const text = payload.toString('utf8')
  const names = ['_ref', ...columns].map(name => name.replace(/[^\p{L}\p{N}_]/gu, '\\$&')).join('|')
  const name = text.includes('\\u') ? '' : String.raw`(?:${names})\\*"\s*`
  const member = new RegExp(
    String.raw`${name}:\s*\\*"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\\*"`,
    'gi',
  )
  return [...new Set(Array.from(text.matchAll(member), ([, id = '']) => id.toLowerCase()))]
}
