// docs/migrating.md, from its first statement to its last, on a database as the original application has it.
import { randomUUID } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { blocksOf, type DocBlock, readDoc } from '../support/doc-blocks.ts'
import { asJsonbText, drained, hydrated, insertMessage, rawMetadata } from '../support/environment.ts'
import { type OwnedDatabase, openOwnedDatabase } from '../support/owned-database.ts'
import { type RunningCli, runCli, startCli } from '../support/process.ts'
import { column, originalArtifactRefs, originalTables, uniqueRole, value } from '../support/sql.ts'
import { bucketKeys } from '../support/sweep.ts'

const worker = uniqueRole('lighter_worker')
const tenant = randomUUID()
let db: OwnedDatabase
let folder: string
let daemon: RunningCli
/** Metadata of the messages as their writers mean it. */
const whole = new Map<string, string>()
const own = { message: '', artifact: '', pointers: '' }

const ours = (words: string) => `{"tool_interactions": [{"n": 1.10, "text": "${words}"}], "model": "m"}`
/** Longer than phase 2 leaves alone. */
const large = `{"feedback": "up", "model": "m", "trace": "${'long '.repeat(3000)}", "tool_interactions": [1e2]}`

beforeAll(async () => {
  db = await openOwnedDatabase()
  folder = await mkdtemp(path.join(os.tmpdir(), 'pg-lighter-migrating-'))
  // Where the roles of pg-lighter are not there yet, whoever migrates makes them and has this.
  await db.environment.admin.query(`grant lighter_daemon to ${db.owner} with admin option`)
  await db.pool.query(originalTables({ tenantColumn: false }))
  await db.pool.query(originalArtifactRefs)
})
afterAll(async () => {
  await db.environment.admin.query(`drop owned by ${worker}; drop role ${worker}`).catch(() => undefined)
  await db.environment.admin.query(`drop owned by ${db.owner} cascade`)
  await db.close()
  await rm(folder, { recursive: true, force: true })
})

async function write(conversation: string, metadata: string): Promise<string> {
  const id = await insertMessage(db.environment, conversation, metadata, db.pool)
  whole.set(id, (await asJsonbText(db.environment, metadata)) ?? '')
  return id
}

/** As the original application does it: the object, its row, and the pointer in the message. */
async function offloadByHand(conversation: string): Promise<void> {
  const { store, env } = db.environment
  const payload = '[{"by": "hand"}]'
  const key = `${env.R2_PREFIX}tenants/${tenant}/document_analysis/2025/01/01/${randomUUID()}.json`
  await store.put(key, Buffer.from(payload), { contentType: 'application/json', contentEncoding: undefined })
  own.artifact = await value<string>(
    db.pool,
    `insert into artifact_refs (tenant_id, kind, entity_type, entity_id, r2_key, content_type, size_bytes)
     values ($1, 'document_analysis', 'conversation', $2, $3, 'application/json', $4) returning id`,
    [tenant, conversation, key, payload.length],
  )
  own.pointers = `{"tool_interactions_ref": "${own.artifact}", "tool_interactions_count": 1}`
  own.message = await write(conversation, own.pointers)
  whole.set(own.message, '{"tool_interactions": [{"by": "hand"}]}')
}

async function writeEnvFile(block: DocBlock): Promise<void> {
  const daemonUrl = new URL(db.url)
  daemonUrl.username = worker
  daemonUrl.password = 'secret'
  const real: Record<string, string> = {
    ...db.environment.env,
    ADMIN_DATABASE_URL: db.url,
    DATABASE_URL: daemonUrl.href,
  }
  const lines = block.text.split('\n').map(line => {
    const name = line.slice(0, line.indexOf('='))
    return real[name] === undefined ? line : `${name}=${real[name]}`
  })
  // Of the test: a place of its own, time that passes at once, and an API to ask.
  const test = ['R2_ENDPOINT', 'R2_PREFIX', 'API_PORT', 'POLL_INTERVAL_MS'].map(
    name => `${name}=${real[name]}`,
  )
  test.push('SWEEP_GRACE_DAYS=0', 'LOG_LEVEL=info', 'AUTH_MODE=dev')
  await writeFile(path.join(folder, '.env'), [...lines, ...test].join('\n'))
}

async function runCommands(block: DocBlock): Promise<void> {
  const lines = block.text
    .replaceAll(/\\\n\s*/g, ' ')
    .split('\n')
    .map(line => line.replace(/\s+#.*$/, ''))
  for (const line of lines.filter(each => each !== '')) {
    const [program, ...args] = line.split(/\s+/)
    expect(program).toBe('lighter')
    if (args.includes('start')) {
      daemon = startCli(args, { cwd: folder })
      await daemon.says('the HTTP API listens')
      await daemon.says('daemon started')
      continue
    }
    if (args.includes('detach')) {
      daemon.signal('SIGTERM')
      expect((await daemon.ended).code).toBe(0)
    }
    const { code, stdout, stderr } = await runCli(args, { cwd: folder })
    expect([line, code, code === 0 ? '' : stdout + stderr]).toEqual([line, 0, ''])
  }
}

async function runBlock(block: DocBlock): Promise<{ rows: { r2_key: string }[] } | undefined> {
  if (block.info === 'sh env') await writeEnvFile(block)
  else if (block.info === 'sql')
    return db.pool.query(block.text.replaceAll('lighter_worker', worker).replace('…', 'secret'))
  else await runCommands(block)
  return undefined
}

test('the page leads there and back, and nothing is lost on the way', async () => {
  const { environment } = db
  const blocks = blocksOf(readDoc('migrating.md'))
  const part = (from: string, to?: string) => {
    const headings = blocks.map(block => block.heading)
    const end = to === undefined ? -1 : headings.findIndex(heading => heading.startsWith(to))
    return blocks.slice(
      headings.findIndex(heading => heading.startsWith(from)),
      end < 0 ? undefined : end,
    )
  }
  const conversation = await value<string>(
    db.pool,
    'insert into conversations (tenant_id) values ($1) returning id',
    [tenant],
  )
  await offloadByHand(conversation)
  const early = await write(conversation, ours('early'))

  for (const block of part('1.', '5.')) await runBlock(block)
  await db.pool.query(`select lighter.set_defaults(settle_for => '0', max_wait => '0')`)
  const late = await write(conversation, large)
  await drained(environment)
  expect(JSON.parse((await rawMetadata(environment, late)) ?? '')).toMatchObject({
    feedback: 'up',
    artifact_metadata_ref: expect.any(String),
  })
  const address = daemon.logged().find(line => line.msg === 'the HTTP API listens')?.address
  const stored = await fetch(`${address}/api/storage/artifacts?tenant_id=${tenant}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: '{"kind": "document_analysis", "payload": {"by": "API"}}',
  })
  expect(stored.status).toBe(201)

  for (const block of part('5.', 'And back')) await runBlock(block)
  await drained(environment)
  expect(await rawMetadata(environment, early)).toContain('_ref')
  expect(await rawMetadata(environment, own.message)).toBe(await asJsonbText(environment, own.pointers))
  for (const [id, text] of whole) expect(await hydrated(environment, id)).toBe(text)

  const [restore, detach, list, end] = part('And back')
  if (!restore || !detach || !list || !end) throw new Error('the page lacks a part of the way back')
  await runBlock(restore)
  for (const id of [early, late]) expect(await rawMetadata(environment, id)).toBe(whole.get(id))
  // What the application did by hand is as it was.
  expect(await rawMetadata(environment, own.message)).toBe(await asJsonbText(environment, own.pointers))

  await runBlock(detach)
  // As any S3 tool would.
  const listed = (await runBlock(list))?.rows.map(row => row.r2_key) ?? []
  expect(listed).toHaveLength(3)
  await environment.store.delete(listed)
  await runBlock(end)
  const { rows } = await db.pool.query('select r2_key, kind from artifact_refs')
  expect(rows.map(row => row.kind)).toEqual(['document_analysis', 'document_analysis'])
  expect(await bucketKeys(environment)).toEqual(rows.map(row => row.r2_key).sort())
  expect(await column(db.pool, `select nspname from pg_namespace where nspname = 'lighter'`)).toEqual([])
}, 590_000)
