import { expect, test } from 'vitest'
import { newArtifactId } from '../../src/ids.ts'

test('ids are UUIDs of version 7, never twice the same, and in the order of time', async () => {
  const before = Date.now()
  const ids = Array.from({ length: 10_000 }, newArtifactId)
  const after = Date.now()
  expect(new Set(ids).size).toBe(ids.length)
  for (const id of ids) {
    expect(id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
    const time = Number.parseInt(id.slice(0, 13).replace('-', ''), 16)
    expect(time).toBeGreaterThanOrEqual(before)
    expect(time).toBeLessThanOrEqual(after)
  }
})
