// Metadata to be written: what assistants really write, what has broken programs, and what is large.
import { createCipheriv, hash } from 'node:crypto'
import { type DemoMessage, generateMessages } from '../src/demo/messages.ts'
import { between, chance, pick, seededRandom } from '../src/demo/random.ts'
import { hardObject } from '../src/demo/text.ts'
import { oddValues } from '../test/support/json-values.ts'

export interface Payloads {
  /** JSON text of a whole metadata, or null for SQL's null. */
  whole(): string | null
  /** Of both phases: interactions, and more than the threshold beside them. */
  heavy(): string
  /** Of the second phase alone. */
  long(): string
  /** An object to be laid over a metadata. */
  patch(): string
  /** Something for `tool_interactions` that goes off the row. */
  interactions(): string
  /** Of several megabytes that do not compress, so that its upload has several parts. */
  large(): string
}

const MiB = 1024 * 1024
/** Text that does not compress, the same for the same seed: pieces are cut out of it. */
export function createNoise(seed: number): string {
  const key = hash('sha256', `noise ${seed}`, 'buffer')
  return createCipheriv('aes-256-ctr', key, Buffer.alloc(16))
    .update(Buffer.alloc(12 * MiB))
    .toString('base64')
}

export function createPayloads(seed: number, name: string, noiseText: string): Payloads {
  const random = seededRandom(seed, 'payloads', name)
  const messages = generateMessages({ seed, messages: Number.POSITIVE_INFINITY, tenants: 3 })
  const next = (): DemoMessage => messages.next().value as DemoMessage
  const noise = (bytes: number) => {
    const from = between(random, 0, noiseText.length - bytes)
    return noiseText.slice(from, from + bytes)
  }
  const odd = () => pick(random, oddValues)[1]
  const interactions = () =>
    pick(random, [
      () => odd(),
      () => `{"calls": ${odd()}}`,
      () => `[${hardObject(random)}, ${hardObject(random)}]`,
      () => `[{"tool": "search", "result": "${noise(between(random, 10, 3000))}"}]`,
    ])()

  const heavy = () =>
    `{"tool_interactions": ${interactions()}, "lead_id": "x", "trace": "${noise(between(random, 8000, 30_000))}"}`

  const long = () =>
    `{"model": "m", "trace": "${noise(between(random, 8000, 20_000))}", "usage": {"tokens": 1e400}}`

  const kinds: [weight: number, make: () => string | null][] = [
    [8, () => next().metadata],
    [6, () => `{"model": "m", "iterations": 3, "tool_interactions": ${interactions()}}`],
    [4, long],
    [4, heavy],
    // The same key twice: Postgres keeps the last one.
    [
      1,
      () =>
        `{"a": 1, "tool_interactions": [1], "a": {"b": ${odd()}}, "tool_interactions": [2, "${noise(20)}"]}`,
    ],
    [1, () => `{"exotic": ${odd()}, "hard": ${hardObject(random)}}`],
    // A row that is streamed, in one piece.
    [
      1,
      () =>
        `{"document": "${noise(between(random, 66_000, 400_000))}", "tool_interactions": ${interactions()}}`,
    ],
    [1, () => `{"tool_interactions": ["${noise(between(random, 66_000, 200_000))}"]}`],
    [1, () => pick(random, [null, 'null', '{}', '[]', '"text"', '12345678901234567890.50', odd()])],
    [1, () => `["${noise(between(random, 9000, 12_000))}", ${odd()}]`],
  ]
  const bag = kinds.flatMap(([weight, make]) => new Array<() => string | null>(weight).fill(make))

  return {
    whole: () => pick(random, bag)(),
    interactions,
    heavy,
    long,
    patch: () => {
      const key = pick(random, ['rating', 'note', 'model', 'usage', 'lead_id', 'trace', 'feedback'])
      const value = chance(random, 0.2)
        ? `"${noise(between(random, 8000, 12_000))}"`
        : pick(random, ['5', 'null', '1e400', '"s"', '{"deep": [1.00, {}]}', `"${noise(50)}"`])
      return `{"${key}": ${value}}`
    },
    large: () =>
      `{"document": "${noise(between(random, 7 * MiB, 9 * MiB))}"${chance(random, 0.5) ? `, "tool_interactions": ${interactions()}` : ''}}`,
  }
}
