// The stub that stands in the place of a value, as lighter.stub_id (sql/functions/15_pointers.sql) knows it. The client in
// browsers needs it too.
import { stubKey } from './pointer-keys.ts'

const space = '[ \\t\\n\\r]*'
const uuid = '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'
const stub = new RegExp(`^${space}\\{${space}"${stubKey}"${space}:${space}"(${uuid})"${space}\\}${space}$`)
const leastLength = 55
const greatestLength = 128

/** Whether a text of this length may be a stub: what is longer need not be looked at. */
export const mayBeStub = (length: number): boolean => length >= leastLength && length <= greatestLength

/**
 * The id in a text that is a stub, else null. White space may be any: a program that reads JSON and saves it again writes
 * its own.
 */
export const stubIdIn = (text: string): string | null =>
  mayBeStub(text.length) ? (stub.exec(text)?.[1] ?? null) : null
