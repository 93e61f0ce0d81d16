// Pointers in the text of a payload, as lighter.pointers_in_text finds them in a row. More may be found than is a pointer:
// that keeps an artifact longer than it need be.

/** Only a payload that has one of these can have a pointer: the end of every name, or a name that is written with escapes. */
export const pointerMarks = ['_ref"', '\\u']

/** Every uuid in the payload under a name that may be a pointer's, at any depth; or, of escaped names, any name. */
export function pointersInPayload(payload: Buffer): string[] {
  if (!pointerMarks.some(mark => payload.includes(mark))) return []
  const text = payload.toString('utf8')
  const member = text.includes('\\u')
    ? /:\s*"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"/gi
    : /_ref"\s*:\s*"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"/gi
  return [...new Set(Array.from(text.matchAll(member), ([, id = '']) => id.toLowerCase()))]
}
