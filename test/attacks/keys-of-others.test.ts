// Rows of artifact_refs are written by whoever has the service role. A key that is not the tenant's own is never sent to
// the store, whatever the row is used for; and bytes are JSON because they were looked at, not because a row says so.
import { randomUUID } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { createLighterClient, openStore } from '../../src/index.ts'
import { startApi } from '../support/api.ts'
import { lighter, lighterOk } from '../support/black-box.ts'
import { insertMessage, newConversation, rawMetadata, useEnvironment } from '../support/environment.ts'
import { startFaultyStore } from '../support/request-fault.ts'
import { storeByHand, storeFrameByHand } from '../support/stored-artifacts.ts'
import { age, runNow } from '../support/sweep.ts'

const environment = await useEnvironment()
const store = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
const env = { R2_ENDPOINT: store.endpoint, STREAM_THRESHOLD_BYTES: '65536' }
const api = await startApi(environment, { env })
afterAll(async () => {
  await api.daemon.stop()
  await store.close()
})
beforeEach(() => {
  store.requests.length = 0
})

const prefix = environment.env.R2_PREFIX ?? ''
const theirs = randomUUID()
const secret = Buffer.from('{"secret": "of another tenant"}')
/** In each key, to find requests by. */
const mark = 'stray'

const strayKeys: [string, (mine: string) => string][] = [
  ['of another tenant', () => `${prefix}tenants/${theirs}/attachment/${mark}.json`],
  ['outside the prefix', mine => `tenants/${mine}/attachment/${mark}.json`],
  ['under another prefix', mine => `other/tenants/${mine}/attachment/${mark}.json`],
  ['with ..', mine => `${prefix}tenants/${mine}/../${theirs}/attachment/${mark}.json`],
  ['with an encoded ..', mine => `${prefix}tenants/${mine}/%2e%2E/${theirs}/attachment/${mark}.json`],
  ['with a backslash and ..', mine => `${prefix}tenants/${mine}/..\\..\\${theirs}/${mark}.json`],
  ['with an empty part', mine => `${prefix}tenants/${mine}//attachment/${mark}.json`],
  ['of both tenants', mine => `${prefix}tenants/${theirs}/tenants/${mine}/${mark}.json`],
  ['with a line end', mine => `${prefix}tenants/${mine}/attachment/${mark}\n.json`],
]

describe.each(strayKeys)('a key %s', (_name, keyFor) => {
  /** What a row of mine says, and an object that is really there. */
  async function strayArtifact(sizeBytes: number | null = secret.length) {
    const mine = randomUUID()
    const key = keyFor(mine)
    // Some stores do not take such a key at all.
    await environment.store.put(key, secret, { contentType: 'application/json' }).catch(() => undefined)
    const { id } = await storeByHand(environment, mine, null, { key, sizeBytes })
    return { mine, id, key }
  }
  const storedAt = (at: string) =>
    environment.store.get(at).then(
      ({ body }) => body.toString(),
      () => null,
    )
  const asked = () => store.requests.filter(request => request.path.includes(mark))

  test.each([
    ['and its length', secret.length],
    ['and no length', null],
    ['and a large length', 1_000_000],
  ])('is not sent for a reader (a row with the key %s)', async (_length, sizeBytes) => {
    const { mine, id } = await strayArtifact(sizeBytes)
    const one = `/api/storage/artifacts/${id}`
    for (const suffix of ['', '?raw=1', '/url']) {
      const answer = await api.call(mine, 'GET', `${one}${suffix}`)
      expect([suffix, answer.status, answer.json?.code]).toEqual([suffix, 502, 'artifact_foreign_key'])
    }
    const part = await api.call(mine, 'GET', `${one}?raw=1`, { headers: { range: 'bytes=0-1' } })
    expect(part.status).toBe(502)
    await api.call(mine, 'HEAD', `${one}?raw=1`)
    for (const pointer of ['artifact_metadata_ref', 'tool_interactions_ref']) {
      const answer = await api.call(mine, 'POST', '/api/storage/hydrate', {
        json: `{"metadata": [{"${pointer}": "${id}"}]}`,
      })
      expect(answer.json.errors).toMatchObject([{ code: 'artifact_foreign_key' }])
    }
    const direct = openStore(environment.config(env).store)
    onTestFinished(() => direct.close())
    const client = createLighterClient({ pool: environment.worker, store: direct, tenantId: mine })
    for (const use of [() => client.get(id), () => client.stream(id), () => client.url(id)])
      await expect(use()).rejects.toMatchObject({ code: 'artifact_foreign_key' })
    expect(asked()).toEqual([])
  })

  test('is neither exported, restored, nor deleted when the tenant is erased', async () => {
    const { mine, id, key } = await strayArtifact()
    const before = await storedAt(key)
    const { conversationId } = await newConversation(environment, mine)
    await environment.admin.query('alter table conversation_messages disable trigger user')
    const row = await insertMessage(environment, conversationId, `{"artifact_metadata_ref": "${id}"}`)
    await environment.admin.query('alter table conversation_messages enable trigger user')
    const to = await mkdtemp(path.join(tmpdir(), 'lighter-keys-'))
    await lighter(environment, ['export', '--tenant', mine, '--to', to], { env })
    await lighter(environment, ['restore', '--tenant', mine, '--table', 'conversation_messages'], { env })
    await lighter(environment, ['erase', '--tenant', mine, '--yes'], { env })
    await rm(to, { recursive: true })
    expect(await rawMetadata(environment, row)).toContain(id)
    expect(asked()).toEqual([])
    expect(await storedAt(key)).toEqual(before)
  })
})

describe.each(strayKeys)('a key %s that two rows have', (_name, keyFor) => {
  test('is neither compacted nor deleted by the sweeps when both are deleted, one after the other', async () => {
    const mine = randomUUID()
    const key = keyFor(mine)
    await environment.store.put(key, secret, { contentType: 'application/json' }).catch(() => undefined)
    const stored = () =>
      environment.store.get(key).then(
        ({ body }) => body.toString(),
        () => null,
      )
    const before = await stored()
    for (let n = 0; n < 2; n++)
      await storeFrameByHand(environment, mine, null, { key, sizeBytes: secret.length })
    const tombstone = (rows: number) =>
      environment.admin.query(
        `update artifact_refs set deleted_at = now() - interval '400 days'
          where id in (select id from artifact_refs where tenant_id = $1 and deleted_at is null limit $2)`,
        [mine, rows],
      )
    const sweepAll = async () => {
      await age(environment, '100 days')
      for (const name of ['retention', 'compaction', 'orphans'] as const)
        await runNow(environment, name, { env })
    }
    await tombstone(1)
    await sweepAll()
    await sweepAll()
    await tombstone(1)
    await sweepAll()
    await sweepAll()
    // All was tried: both are purged.
    const { rows } = await environment.admin.query(
      'select count(*)::int as n from artifact_refs where tenant_id = $1 and purged_at is null',
      [mine],
    )
    expect(rows[0].n).toBe(0)
    expect(await stored()).toEqual(before)
  })
})

describe('bytes that a row calls JSON off a row of its own', () => {
  const evil = '1}, "status": "evil", "x": {"y": 2'
  const long = `["${'x'.repeat(200_000)}"], "status": "evil", "x": [2]`
  const tenantId = randomUUID()
  const store1 = async (text: string) => {
    const { rows } = await environment.admin.query('select id from lighter.sources limit 1')
    return (await storeByHand(environment, tenantId, Buffer.from(text), { sourceId: rows[0].id })).id
  }

  test('are answered as bytes', async () => {
    const answer = await api.call(tenantId, 'GET', `/api/storage/artifacts/${await store1(evil)}`)
    expect(answer.json).toMatchObject({ status: 'ok', payload_base64: Buffer.from(evil).toString('base64') })
    expect(answer.json).not.toHaveProperty('payload')
  })

  test('break off the answer where they are too long to be looked at first', async () => {
    const id = await store1(long)
    await expect(api.call(tenantId, 'GET', `/api/storage/artifacts/${id}`)).rejects.toThrow()
    const good = await store1(`["${'x'.repeat(200_000)}", 1e400, {"a": [true, null, -0.5e-3, "\\u00e9\\n"]}]`)
    const answer = await api.call(tenantId, 'GET', `/api/storage/artifacts/${good}`)
    expect(answer.text).toContain('1e400, {"a": [true, null, -0.5e-3, "\\u00e9\\n"]}]}')
  })

  test('are no part of a hydrated row', async () => {
    for (const text of [evil, long]) {
      const pointer = `{"artifact_metadata_ref": "${await store1(text)}"}`
      const answer = await api.call(tenantId, 'POST', '/api/storage/hydrate', {
        json: `{"metadata": [${pointer}, {"after": 1}]}`,
      })
      expect(answer.json).toMatchObject({
        status: 'ok',
        metadata: [JSON.parse(pointer), { after: 1 }],
        errors: [{ index: 0 }],
      })
    }
  })

  test('are exported as bytes', async () => {
    const to = await mkdtemp(path.join(tmpdir(), 'lighter-json-'))
    onTestFinished(() => rm(to, { recursive: true }))
    await lighterOk(environment, ['export', '--tenant', tenantId, '--to', to])
    const files = (await readdir(to)).filter(name => name.endsWith('.jsonl'))
    const texts = await Promise.all(files.map(name => readFile(path.join(to, name), 'utf8')))
    const lines = texts.flatMap(text => text.split('\n').filter(line => line !== ''))
    const payloads = lines.map(line => JSON.parse(line).payload_base64)
    expect(payloads).toContain(Buffer.from(evil).toString('base64'))
  })
})
