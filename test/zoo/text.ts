// What the applications of the zoo write: the same for the same seed, so that two databases get the same rows.
import { createHash } from 'node:crypto'

const words =
  `the a tool call of agent model returned with result error retry "quoted" it's 100% path\\to\\file naïve Zürich 漢字 🚢 e\u0301 {open} [closed] <tag> tab\there line\nbreak null true 0.1 -7 1e21 user_id search results page context window token budget summary draft plan step done next`.split(
    ' ',
  )

const digest = (seed: string) => createHash('sha256').update(seed).digest()

/** Text of about so many bytes that does not compress to nothing, with quotes, escapes and characters of several bytes. */
export function prose(seed: string, bytes: number): string {
  const parts: string[] = []
  for (let length = 0, n = 0; length < bytes; n++) {
    const hash = digest(`${seed} ${n}`)
    const sentence = `${Array.from(hash.subarray(8), byte => words[byte % words.length]).join(' ')} ${hash.toString('hex', 0, 8)}.`
    parts.push(sentence)
    length += Buffer.byteLength(sentence) + 1
  }
  return parts.join(' ')
}

/** Any bytes, zeros among them. */
export function bytesOf(seed: string, length: number): Buffer {
  const parts = Array.from({ length: Math.ceil(length / 32) }, (_, n) => digest(`${seed} ${n}`))
  return Buffer.concat([Buffer.from([0, 255, 0]), ...parts]).subarray(0, length)
}

export function uuid(seed: string): string {
  const hex = digest(seed).toString('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-a${hex.slice(17, 20)}-${hex.slice(20, 32)}`
}

/** Such as Prisma makes them. */
export const cuid = (seed: string): string =>
  `c${BigInt(`0x${digest(seed).toString('hex', 0, 15)}`)
    .toString(36)
    .slice(0, 24)}`

/** A time of November 2026, later for a larger number. */
export const timeOf = (n: number): string => new Date(Date.UTC(2026, 10, 1, 0, n)).toISOString()

/** JSON with white space that only its writer could know. */
export const spaced = (value: unknown): string =>
  `${JSON.stringify(value, undefined, 1).replace('\n', '\n\t')} \n`
