// A Node that has no zstd: the package can be imported there, and what goes over HTTP works.
import { execFile } from 'node:child_process'
import { cp, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, type TestContext, test } from 'vitest'
import { startApi, type TestApi } from '../support/api.ts'
import { drained, insertMessage, newConversation, useEnvironment } from '../support/environment.ts'

const repository = path.join(import.meta.dirname, '..', '..')
const environment = await useEnvironment()
const node20 = await findNode20()
let api: TestApi
let project: string

beforeAll(async () => {
  project = await mkdtemp(path.join(os.tmpdir(), 'pg-lighter-node20-'))
  if (node20 === null) return
  const installed = path.join(project, 'node_modules', 'pg-lighter')
  await mkdir(installed, { recursive: true })
  await run(path.join(repository, 'node_modules/.bin/tsc'), [
    ...['-p', path.join(repository, 'tsconfig.build.json')],
    ...['--outDir', path.join(installed, 'dist')],
  ])
  await cp(path.join(repository, 'package.json'), path.join(installed, 'package.json'))
  await symlink(path.join(repository, 'node_modules'), path.join(installed, 'node_modules'))
  api = await startApi(environment)
}, 120_000)
afterAll(async () => {
  await api?.daemon.stop()
  await rm(project, { recursive: true, force: true })
})

async function run(file: string, args: string[], env: Record<string, string> = {}): Promise<string> {
  const options = { cwd: project, env: { PATH: process.env.PATH ?? '', ...env } }
  const { stdout } = await promisify(execFile)(file, args, options).catch(error => {
    throw new Error(`${file} ${args.join(' ')}: ${error.message}\n${error.stdout}\n${error.stderr}`)
  })
  return stdout
}

/** The machine's own: the one that runs the tests is newer. */
async function findNode20(): Promise<string | null> {
  for (const file of ['/usr/bin/node', '/usr/local/bin/node']) {
    const found = await promisify(execFile)(file, ['--version']).catch(() => null)
    if (found?.stdout.startsWith('v20.')) return file
  }
  return null
}

/** Runs a module under Node 20; what it prints is JSON. */
async function onNode20(context: TestContext, code: string, env?: Record<string, string>) {
  if (node20 === null) return context.skip('this machine has no Node 20 at /usr/bin or /usr/local/bin')
  const file = path.join(project, 'main.mjs')
  await writeFile(file, code)
  return JSON.parse(await run(node20, [file], env))
}

test('everything that goes over HTTP works on Node 20', async context => {
  const { tenantId, conversationId } = await newConversation(environment)
  const id = await insertMessage(environment, conversationId, '{"tool_interactions": [{"n": 1.10}]}')
  await drained(environment)
  const { rows } = await environment.admin.query(
    'select metadata::text as metadata from conversation_messages where id = $1',
    [id],
  )
  expect(rows[0].metadata).toContain('tool_interactions_ref')
  const answer = await onNode20(
    context,
    `import { createLighterClient, hydrate, LighterHttpError } from 'pg-lighter'
     import { createLighterClient as createWebClient } from 'pg-lighter/client'
     const { BASE_URL: baseUrl, TENANT: tenantId, ROW: row } = process.env
     const client = createLighterClient({ baseUrl, tenantId })
     const stored = await client.put({ kind: 'agent_trace', json: '[1.50]' })
     const bytes = await client.put({ kind: 'attachment', body: new Blob(['abc']) })
     let streamed = ''
     for await (const chunk of await client.stream(bytes.id)) streamed += Buffer.from(chunk)
     const { url } = await client.url(bytes.id)
     console.log(JSON.stringify({
       hydrated: (await hydrate(client, JSON.parse(row))).metadata,
       hydratedByWeb: (await createWebClient({ baseUrl, tenantId }).hydrate(JSON.parse(row))).metadata,
       read: (await client.get(stored.id)).payload.text(),
       streamed,
       byUrl: await (await fetch(url)).text(),
       listed: (await client.list({ kind: 'agent_trace' })).artifacts.map(a => a.id === stored.id),
       deleted: (await client.delete(stored.id)).deletedAt instanceof Date,
       gone: await client.get(stored.id).catch(e => e instanceof LighterHttpError && e.code),
     }))`,
    { BASE_URL: api.url, TENANT: tenantId, ROW: JSON.stringify(rows[0]) },
  )
  const whole = '{"tool_interactions": [{"n": 1.10}]}'
  expect(answer).toEqual({
    hydrated: whole,
    hydratedByWeb: whole,
    read: '[1.50]',
    streamed: 'abc',
    byUrl: 'abc',
    listed: [true],
    deleted: true,
    gone: 'artifact_deleted',
  })
})

test('what needs a later Node says so by its name, and nothing fails in another way', async context => {
  const onEveryNode = [
    ...['hydrate', 'hydrateMany', 'createLighterClient', 'asArtifactId', 'asTenantId'],
    ...['rowKey', 'rowKeyParts', 'tenantIdOf'],
  ]
  const { keys, ...said }: Record<string, string> & { keys: unknown } = await onNode20(
    context,
    `import * as all from 'pg-lighter'
     const said = {}
     for (const [name, value] of Object.entries(all)) {
       if (value.prototype instanceof Error || ${JSON.stringify(onEveryNode)}.includes(name)) continue
       try { await value({}, {}); said[name] = 'nothing' } catch (e) { said[name] = e.code + ': ' + e.message }
     }
     said.keys = [all.rowKey(['a', 'b']), all.rowKeyParts('["a","b"]', 2), all.tenantIdOf('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 'acme')]
     try { all.createLighterClient({ pool: {}, store: {}, tenantId: 'x' }) } catch (e) { said.direct = e.code + ': ' + e.message }
     console.log(JSON.stringify(said))`,
  )
  expect(keys).toEqual(['["a","b"]', ['a', 'b'], '5aaf6176-7f61-8cf7-9c21-c3752224617e'])
  expect(Object.keys(said)).toEqual(
    expect.arrayContaining(['createDaemon', 'openStore', 'migrate', 'direct']),
  )
  for (const [name, text] of Object.entries(said)) {
    const what = name === 'direct' ? 'createLighterClient without baseUrl' : name
    expect(text).toMatch(new RegExp(`^node_too_old: ${what} needs Node 22\\.18 or later, this is 20\\.`))
  }
})

test('the command says on Node 20 which Node it needs', async context => {
  if (node20 === null) return context.skip('this machine has no Node 20 at /usr/bin or /usr/local/bin')
  const main = path.join(project, 'node_modules/pg-lighter/dist/cli/main.js')
  await expect(run(node20, [main, '--help'])).rejects.toThrow(
    'lighter needs Node 22.18 or later, this is 20.',
  )
})
