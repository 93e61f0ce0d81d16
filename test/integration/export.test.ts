// Export: what comes out is what was stored, byte by byte, of this tenant and no other, and an interrupted one goes on.
import { createHash, randomUUID } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { putArtifact } from '../../src/artifacts/put.ts'
import { splitObject } from '../../src/artifacts/raw-json.ts'
import type { Daemon } from '../../src/daemon.ts'
import { createPool } from '../../src/db/pool.ts'
import { type ExportContext, exportTenant } from '../../src/export/export.ts'
import type { Manifest } from '../../src/export/manifest.ts'
import { openTarget } from '../../src/export/target.ts'
import { asTenantId } from '../../src/ids.ts'
import { openStore } from '../../src/store/object-store.ts'
import { spoilHashes } from '../support/artifacts.ts'
import { artifactCount, type TenantData, writeConversations } from '../support/conversations.ts'
import {
  createEnvironment,
  drained,
  insertMessage,
  newConversation,
  startDaemon,
  type TestEnvironment,
} from '../support/environment.ts'
import { runCli, startCli } from '../support/process.ts'
import { startFaultyStore } from '../support/request-fault.ts'
import { column, errorOf, value } from '../support/sql.ts'
import { runNow } from '../support/sweep.ts'
import { combinations, heavyValue, insertValue, newValueTable, rawValue } from '../support/value-tables.ts'

let environment: TestEnvironment
let daemon: Daemon
let folder: string

beforeEach(async () => {
  environment = await createEnvironment()
  daemon = await startDaemon(environment)
  folder = await mkdtemp(path.join(tmpdir(), 'lighter-export-'))
})
afterEach(async () => {
  await daemon.stop()
  await environment.close()
  await rm(folder, { recursive: true, force: true })
})

async function exportTo(
  to: string,
  tenantId: string,
  options: Partial<
    Pick<ExportContext, 'maxFileBytes' | 'signal' | 'onProgress' | 'store' | 'batchSize'>
  > = {},
) {
  const pool = createPool(environment.urls.daemon, 2, () => undefined)
  const config = environment.config()
  const target = openTarget(to, config.store, config.offload.partBytes)
  try {
    return await exportTenant(
      {
        pool,
        store: environment.store,
        target,
        batchBytes: 1_000_000,
        batchSize: 50,
        maxFileBytes: 256 * 1024 * 1024,
        signal: new AbortController().signal,
        onProgress: () => undefined,
        ...options,
      },
      asTenantId(tenantId),
    )
  } finally {
    target.close()
    await pool.end()
  }
}

const sha256 = (bytes: Buffer | string) => createHash('sha256').update(bytes).digest('hex')

interface Exported {
  artifact: Record<string, unknown>
  payload: Buffer
}

/** All artifacts of an export in a directory, read with nothing of ours; checks every file against the manifest. */
async function readExport(directory: string): Promise<Map<string, Exported>> {
  const manifest: Manifest = JSON.parse(await readFile(path.join(directory, 'manifest.json'), 'utf8'))
  const list = await readFile(path.join(directory, 'artifacts.txt'))
  expect(sha256(list)).toBe(manifest.list?.sha256)
  const listed = list.toString().split('\n').slice(0, -1)
  expect(manifest).toMatchObject({ list: { artifacts: listed.length }, position: listed.length })
  expect(listed).toHaveLength(manifest.artifacts + manifest.damaged.length + manifest.gone)
  const found = new Map<string, Exported>()
  for (const file of manifest.files) {
    const bytes = await readFile(path.join(directory, file.name))
    expect(bytes.length).toBe(file.bytes)
    expect(sha256(bytes)).toBe(file.sha256)
    const lines = bytes.toString('utf8').split('\n').slice(0, -1)
    expect(lines).toHaveLength(file.artifacts)
    for (const line of lines) {
      JSON.parse(line) // it is JSON, whatever the numbers in it
      const members = splitObject(line)
      const artifact = JSON.parse(members.get('artifact') ?? '')
      const base64 = members.get('payload_base64')
      const name = members.get('payload_file')
      const payload =
        base64 !== undefined
          ? Buffer.from(JSON.parse(base64), 'base64')
          : name !== undefined
            ? await readFile(path.join(directory, JSON.parse(name)))
            : Buffer.from(members.get('payload') ?? '')
      expect(found.has(artifact.id)).toBe(false)
      expect(listed).toContain(artifact.id)
      found.set(artifact.id, { artifact, payload })
    }
  }
  return found
}

async function expectWhole(found: Map<string, Exported>, tenantId: string) {
  const { rows } = await environment.admin.query<{ id: string; sha256: string; kind: string }>(
    'select id, sha256, kind from artifact_refs where tenant_id = $1 and deleted_at is null',
    [tenantId],
  )
  expect(new Set(found.keys())).toEqual(new Set(rows.map(row => row.id)))
  for (const row of rows) {
    const exported = found.get(row.id)
    expect(exported?.artifact).toMatchObject({ id: row.id, tenant_id: tenantId, kind: row.kind })
    expect(sha256(exported?.payload ?? '')).toBe(row.sha256)
  }
}

async function tenants(messages = 400): Promise<[TenantData, TenantData]> {
  const [first, second] = await writeConversations(environment, { messages, tenants: 2 })
  if (first === undefined || second === undefined) throw new Error('two tenants are needed')
  return [first, second]
}

test('every live artifact of the tenant, exactly, and none of another', async () => {
  const [tenant] = await tenants()
  const { tenantId } = tenant
  // Numbers that a JavaScript number can't hold, a payload of line ends, one that is no JSON, one that only says so.
  const { conversationId } = await newConversation(environment, tenantId)
  await insertMessage(
    environment,
    conversationId,
    '{"tool_interactions": [12345678901234567890.5, 1e400, "\\u2028"]}',
  )
  await drained(environment)
  const put = (contentType: string, payload: string | Buffer) =>
    putArtifact(
      environment.worker,
      environment.store,
      {
        tenantId: asTenantId(tenantId),
        kind: 'attachment',
        entityType: null,
        entityId: null,
        contentType,
        payload: Buffer.from(payload),
        isJson: contentType === 'application/json',
        codec: 'zstd',
        idempotency: null,
      },
      { partBytes: 8_000_000, leaseMs: 60_000, maxBytes: 1_000_000_000 },
    )
  const pretty = await put('application/json', '{\n  "a": 1\n}')
  const binary = await put('image/png', Buffer.from([0, 1, 2, 255]))
  const broken = await put('application/json', '{"a": ')
  const deleted = await put('application/json', '{}')
  await environment.admin.query('update artifact_refs set deleted_at = now() where id = $1', [deleted.id])
  // The application's own row says neither length nor hash.
  const own = `${environment.store.prefix}tenants/${tenantId}/chat_transcript/own.json`
  await environment.store.put(own, Buffer.from('{"own": true}'), { contentType: 'application/json' })
  const { rows } = await environment.admin.query<{ id: string }>(
    `insert into artifact_refs (tenant_id, kind, r2_key, sha256) values ($1, 'chat_transcript', $2, $3) returning id`,
    [tenantId, own, sha256('{"own": true}')],
  )

  const manifest = await exportTo(folder, tenantId)
  const found = await readExport(folder)
  await expectWhole(found, tenantId)
  expect(manifest).toMatchObject({ tenant: tenantId, artifacts: found.size, damaged: [] })
  expect(manifest.blobs).toEqual([expect.objectContaining({ name: `blobs/${rows[0]?.id}` })])
  const text = (await readFile(path.join(folder, 'attachment-00001.jsonl'))).toString()
  for (const { id } of [pretty, binary, broken]) {
    expect(text.split('\n').find(line => line.includes(id))).toContain('"payload_base64"')
  }
  const { mode } = await stat(path.join(folder, 'attachment-00001.jsonl'))
  expect(mode & 0o077).toBe(0)
})

test('files are of the size that was asked for; stopped at any point, it goes on with what is not finished', async () => {
  const [tenant] = await tenants()
  const first = await exportTo(folder, tenant.tenantId, { maxFileBytes: 30_000 })
  expect(first.files.length).toBeGreaterThan(3)
  for (const file of first.files.filter(f => f.artifacts > 1)) expect(file.bytes).toBeLessThanOrEqual(30_000)
  await expectWhole(await readExport(folder), tenant.tenantId)

  const other = path.join(folder, 'again')
  let runs = 0
  for (let finished = false; !finished; ) {
    const stop = new AbortController()
    let artifacts = 0
    const manifest = await exportTo(other, tenant.tenantId, {
      maxFileBytes: 30_000,
      signal: stop.signal,
      onProgress: () => {
        if (++artifacts === 40) stop.abort()
      },
    })
    finished = manifest.finished_at !== null
    expect(++runs).toBeLessThan(50)
  }
  expect(runs).toBeGreaterThan(1)
  await expectWhole(await readExport(other), tenant.tenantId)
  expect((await readdir(other)).filter(name => name.endsWith('.part'))).toEqual([])
  // A finished one is not done again.
  const before = await stat(path.join(other, 'manifest.json'))
  await exportTo(other, tenant.tenantId)
  expect((await stat(path.join(other, 'manifest.json'))).mtimeMs).toBe(before.mtimeMs)
})

test('it holds what was committed when it began, whatever is committed, moved or deleted while it runs', async () => {
  const [tenant] = await tenants()
  const { tenantId } = tenant
  const before = await column<string>(
    environment.admin,
    'select id from artifact_refs where tenant_id = $1 order by kind, created_at, id',
    [tenantId],
  )
  // Begun before the export, committed in the middle of it: older than all that it has not come to yet.
  const late = await environment.admin.connect()
  await late.query('begin')
  const insert = (kind: string) =>
    late.query(
      `insert into artifact_refs (tenant_id, kind, r2_key, size_bytes, created_at)
       values ($1, $2, 'tenants/' || $1::uuid || '/late/' || gen_random_uuid(), 1, now() - interval '1 hour')`,
      [tenantId, kind],
    )
  await insert('assistant_message_metadata')
  await insert('a_kind_of_its_own')
  await insert('zz_the_last_kind')
  const [deleted, forgotten] = before.slice(-2)
  let middle: Promise<unknown> | null = null
  const manifest = await exportTo(folder, tenantId, {
    batchSize: 5,
    maxFileBytes: 20_000,
    onProgress: ({ artifacts }) => {
      if (artifacts < 20 || middle !== null) return
      middle = late
        .query('commit')
        .then(() => insert('assistant_message_tool_interactions'))
        .then(() =>
          environment.admin.query('update artifact_refs set deleted_at = now() where id = $1', [deleted]),
        )
        .then(() => environment.admin.query('delete from artifact_refs where id = $1', [forgotten]))
    },
    // What it reads next waits until that is done, so that it is in the middle.
    store: {
      ...environment.store,
      get: async (...get) => {
        await middle
        return environment.store.get(...get)
      },
    },
  })
  late.release()
  expect(middle).not.toBeNull()
  const found = await readExport(folder)
  expect([...found.keys()].sort()).toEqual(before.slice(0, -2).sort())
  expect(manifest).toMatchObject({ gone: 2, damaged: [] })
  const asOf = await value(environment.admin, `select $1::timestamptz < now()`, [manifest.list?.as_of])
  expect(asOf).toBe(true)
  // The next one has them, and those only, beside.
  await environment.admin.query(`update artifact_refs set deleted_at = now() where r2_key like '%/late/%'`)
  expect((await exportTo(path.join(folder, 'next'), tenantId)).artifacts).toBe(before.length - 2)
})

test('what moves while it runs is read where it is then, and is not said to be damaged', async () => {
  const [tenant] = await tenants()
  let moving: Promise<unknown> | null = null
  const old = await column<string>(
    environment.admin,
    'select distinct r2_key from artifact_refs where tenant_id = $1',
    [tenant.tenantId],
  )
  const manifest = await exportTo(folder, tenant.tenantId, {
    store: {
      ...environment.store,
      get: async (...get) => {
        moving ??= environment.admin
          .query(
            `update lighter.objects set dead_since = now() - interval '1 year', live_artifacts = artifact_count where artifact_count > 1`,
          )
          .then(() => runNow(environment, 'compaction', { config: { compactLiveShare: 2 } }))
          .then(() => environment.store.delete(old.filter(key => !key.endsWith('.json'))))
        await moving
        return environment.store.get(...get)
      },
    },
  })
  expect(manifest.damaged).toEqual([])
  await expectWhole(await readExport(folder), tenant.tenantId)
  expect(manifest.artifacts).toBeGreaterThan(20)
})

test('a directory that holds something else, or another tenant, is refused', async () => {
  const [tenant, other] = await tenants(200)
  await writeFile(path.join(folder, 'notes.txt'), 'mine')
  expect(await errorOf(exportTo(folder, tenant.tenantId))).toMatchObject({ code: 'export_target' })
  const mine = path.join(folder, 'mine')
  await exportTo(mine, tenant.tenantId)
  expect(await errorOf(exportTo(mine, other.tenantId))).toMatchObject({ code: 'export_target' })
  await writeFile(
    path.join(mine, 'manifest.json'),
    '{"format": "pg-lighter-export", "version": 1, "files": []}',
  )
  expect(await errorOf(exportTo(mine, tenant.tenantId))).toMatchObject({
    code: 'export_target',
    message: expect.stringContaining('an earlier version'),
  })
  await writeFile(path.join(mine, 'manifest.json'), '{}')
  expect(await errorOf(exportTo(mine, tenant.tenantId))).toMatchObject({ code: 'export_target' })
  const { bucket, prefix } = environment.store
  expect(() =>
    openTarget(`s3://${bucket}/${prefix}tenants/x`, environment.config().store, 8_000_000),
  ).toThrow(/where pg-lighter keeps/)
})

test('to a bucket, with the same files as to a directory', async () => {
  const [tenant] = await tenants()
  const to = `s3://${environment.store.bucket}/exports/${randomUUID()}`
  const manifest = await exportTo(to, tenant.tenantId, { maxFileBytes: 30_000 })
  expect(manifest.artifacts).toBe(await artifactCount(environment, tenant.tenantId))
  const local = await exportTo(folder, tenant.tenantId, { maxFileBytes: 30_000 })
  expect(manifest.files).toEqual(local.files)
  const base = to.replace(`s3://${environment.store.bucket}/`, '')
  for (const file of manifest.files) {
    const { body } = await environment.store.get(`${base}/${file.name}`)
    expect(sha256(body)).toBe(file.sha256)
  }
  expect((await exportTo(to, tenant.tenantId)).finished_at).toBe(manifest.finished_at)
  // Of a tenant that has nothing, too.
  for (const nowhere of [`${to}/empty`, path.join(folder, 'empty')])
    expect(await exportTo(nowhere, randomUUID())).toMatchObject({
      list: { artifacts: 0 },
      files: [],
      finished_at: expect.any(String),
    })
  const keys: string[] = []
  for await (const { key } of environment.store.list(base)) keys.push(key)
  await environment.store.delete(keys)
})

test('damaged artifacts are named and left out; an outage is no damage', async () => {
  const [tenant] = await tenants()
  const broken = await spoilHashes(
    environment.admin,
    'a.id in (select id from artifact_refs where tenant_id = $1 order by id limit 2)',
    [tenant.tenantId],
  )
  expect(broken).toHaveLength(2)
  const config = environment.config().store
  const faulty = await startFaultyStore(config.endpoint)
  const store = openStore({ ...config, endpoint: faulty.endpoint, timeoutMs: 2000 })
  faulty.fault = (method, path) => (method === 'GET' && path.includes('/tenants/') ? 503 : null)
  expect(await errorOf(exportTo(folder, tenant.tenantId, { store }))).toMatchObject({
    code: 'store_unavailable',
  })
  store.close()
  await faulty.close()

  const manifest = await exportTo(folder, tenant.tenantId)
  expect(manifest.damaged.map(d => d.id).sort()).toEqual(broken.sort())
  const found = await readExport(folder)
  expect(found.size).toBe((await artifactCount(environment, tenant.tenantId)) - 2)
  for (const id of broken) expect(found.has(id)).toBe(false)
})

test('a payload of 80 MB is a file of its own; the command is killed and goes on', async () => {
  const { conversationId, tenantId } = await newConversation(environment)
  for (let n = 0; n < 3; n++) {
    await environment.app.query(
      `insert into conversation_messages (conversation_id, role, content, metadata)
       select $1, 'assistant', '', jsonb_build_object('tool_interactions', jsonb_build_array(repeat($2, 10000000)))`,
      [conversationId, `abcdef${n}${n}`],
    )
  }
  await insertMessage(environment, conversationId, '{"tool_interactions": [1]}')
  await drained(environment, 120_000)
  const args = ['export', '--tenant', tenantId, '--to', folder, '--json']
  const running = startCli(args, { env: environment.env })
  await expect
    .poll(async () => (await readdir(path.join(folder, 'blobs')).catch(() => [])).length, {
      timeout: 60_000,
      interval: 10,
    })
    .toBeGreaterThan(0)
  running.signal('SIGKILL')
  await running.ended
  const finished = await runCli(args, { env: environment.env })
  expect(finished.stderr).toBe('')
  expect(JSON.parse(finished.stdout)).toMatchObject({
    outcome: 'done',
    counts: { artifacts: 4, blobs: 3, damaged: 0 },
  })
  expect(finished.code).toBe(0)
  await expectWhole(await readExport(folder), tenantId)
})

test('values of all types: JSON on a line of its own, text and bytes in base64', async () => {
  const tenantId = randomUUID()
  const values = new Map<string, Buffer>()
  for (const [type, mode] of combinations) {
    const table = await newValueTable(environment, type, mode)
    const bytes =
      type === 'bytea'
        ? Buffer.alloc(9000, '\x00\xff\n', 'latin1')
        : type === 'json'
          ? Buffer.from(`[1,\n"${'x'.repeat(9000)}"]`)
          : heavyValue(type)
    const id = await insertValue(environment, table, bytes, tenantId)
    await drained(environment)
    values.set((await rawValue(environment, table, id)).pointer ?? '', bytes)
  }
  await exportTo(folder, tenantId)
  const found = await readExport(folder)
  await expectWhole(found, tenantId)
  expect(new Map([...found].map(([id, { payload }]) => [id, payload]))).toEqual(values)
})
