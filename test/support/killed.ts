// What tests of killed daemons share.
import { randomBytes } from 'node:crypto'
import { expect } from 'vitest'
import { hydratedMany, type TestEnvironment } from './environment.ts'

/** Random text does not compress, so that streams really need several parts. */
export const noise = (bytes: number) =>
  randomBytes(Math.ceil((bytes * 3) / 4))
    .toString('base64')
    .slice(0, bytes)

export const settings = {
  // What a dead daemon had claimed comes back after this.
  OFFLOAD_LEASE_MS: '1000',
  STREAM_THRESHOLD_BYTES: '65536',
  MULTIPART_PART_BYTES: String(5 * 1024 * 1024),
}

/** Each row hydrates to the text that is given for it. */
export async function expectExact(environment: TestEnvironment, written: Map<string, string>): Promise<void> {
  const ids = [...written.keys()]
  const texts = await hydratedMany(environment, ids)
  for (const [i, id] of ids.entries()) {
    const text = texts[i]
    if (text instanceof Error) throw text
    expect(text === written.get(id), `row ${id} hydrates to what was written`).toBe(true)
  }
}
