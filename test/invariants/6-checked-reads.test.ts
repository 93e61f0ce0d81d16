// Invariant 6: a payload that is not what its sha256 says is an error, never data.
import { createHash } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import { streamPayload } from '../../src/artifacts/fetch.ts'
import { lookupArtifacts } from '../../src/catalogue/lookup.ts'
import type { Daemon } from '../../src/daemon.ts'
import { asArtifactId, asTenantId } from '../../src/ids.ts'
import {
  drained,
  hydrated,
  hydratedMany,
  insertMessage,
  newConversation,
  startDaemon,
  useEnvironment,
} from '../support/environment.ts'

const environment = await useEnvironment()
let daemon: Daemon | undefined

/** Offloads rows of one tenant with the given codec; a pack when there are many, else a loose object. */
async function offload(codec: string, rows: number) {
  const { tenantId, conversationId } = await newConversation(environment)
  const ids: string[] = []
  for (let i = 0; i < rows; i++) {
    ids.push(
      await insertMessage(
        environment,
        conversationId,
        `{"tool_interactions": ["payload ${i}", ${'1234567890, '.repeat(20)}0]}`,
      ),
    )
  }
  daemon = await startDaemon(environment, { env: { OFFLOAD_CODEC: codec } })
  await drained(environment)
  await daemon.stop()
  const { rows: keys } = await environment.admin.query<{ key: string }>(
    'select distinct r2_key as key from artifact_refs where tenant_id = $1',
    [tenantId],
  )
  expect(keys).toHaveLength(1)
  return { tenantId, ids, key: keys[0]?.key ?? '' }
}

const layouts: [string, string, number][] = [
  ['a loose object', 'none', 1],
  ['a compressed loose object', 'zstd', 1],
  ['a compressed loose object', 'gzip', 1],
  ['a pack', 'none', 20],
  ['a zstd pack', 'zstd', 20],
  ['a gzip pack', 'gzip', 20],
]

describe.for(layouts)('%s (%s)', ([, codec, count]) => {
  test('damaged, cut short, replaced or deleted is an error for each of its rows', async () => {
    const { ids, key } = await offload(codec, count)
    const { body } = await environment.store.get(key)
    const put = (bytes: Buffer) => environment.store.put(key, bytes, { contentType: 'application/json' })
    const codes = async () => {
      const results = await hydratedMany(environment, ids)
      return [...new Set(results.map(r => (r instanceof Error && 'code' in r ? r.code : 'data')))]
    }
    expect(await codes()).toEqual(['data'])

    // A flipped bit anywhere: the bytes that were hit must not come out as data.
    const before = await hydratedMany(environment, ids)
    for (const at of [0, Math.floor(body.length / 3), Math.floor(body.length / 2), body.length - 2]) {
      const damaged = Buffer.from(body)
      damaged[at] = (damaged[at] ?? 0) ^ 1
      await put(damaged)
      const results = await hydratedMany(environment, ids)
      for (const [i, result] of results.entries()) {
        if (result instanceof Error) expect(result).toMatchObject({ code: 'artifact_corrupt' })
        else expect(result).toBe(before[i])
      }
      if (codec !== 'none' || count === 1) expect(results.some(r => r instanceof Error)).toBe(true)
    }

    await put(body.subarray(0, body.length - 5))
    expect((await codes()).some(code => code !== 'data')).toBe(true)
    await put(Buffer.alloc(body.length, 'x'))
    expect(await codes()).toEqual(['artifact_corrupt'])
    await put(Buffer.from('[]'))
    expect(await codes()).not.toContain('data')
    await environment.store.delete([key])
    expect(await codes()).toEqual(['artifact_object_missing'])
    await put(body)
    expect(await codes()).toEqual(['data'])
  })
})

test('a streamed read ends in an error when the bytes are not the ones that were stored', async () => {
  const { tenantId, ids, key } = await offload('zstd', 1)
  const { body } = await environment.store.get(key)
  const { rows } = await environment.admin.query<{ id: string }>(
    'select id from artifact_refs where row_id = $1',
    [ids[0]],
  )
  const id = asArtifactId(rows[0]?.id ?? '')
  const [artifact] = (await lookupArtifacts(environment.worker, asTenantId(tenantId), [id])).values()
  if (artifact === undefined) throw new Error('no artifact')
  const read = async () => {
    const hash = createHash('sha256')
    for await (const chunk of await streamPayload(environment.store, artifact)) hash.update(chunk)
    return hash.digest('hex')
  }
  expect(await read()).toBe(artifact.sha256)
  const damaged = Buffer.from(body)
  damaged[body.length >> 1] = (damaged[body.length >> 1] ?? 0) ^ 1
  await environment.store.put(key, damaged, { contentType: 'application/json' })
  await expect(read()).rejects.toMatchObject({ code: expect.stringMatching(/artifact_corrupt|ZSTD/) })
  await environment.store.put(key, body.subarray(0, 20), { contentType: 'application/json' })
  await expect(read()).rejects.toThrow()
})

test('a tombstoned artifact is gone, not data', async () => {
  const { ids } = await offload('zstd', 1)
  await environment.admin.query('update artifact_refs set deleted_at = now() where row_id = $1', [ids[0]])
  await expect(hydrated(environment, ids[0] ?? '')).rejects.toMatchObject({ code: 'artifact_gone' })
})
