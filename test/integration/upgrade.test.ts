// Two versions side by side: the schema is migrated under running daemons of the version before, and both versions work
// on one queue. The next version is this one with a migration more, in a folder of its own.
import { appendFile, cp, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import {
  drained,
  hydratedMany,
  insertMessage,
  newConversation,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { startCli } from '../support/process.ts'
import { value } from '../support/sql.ts'

const root = path.join(import.meta.dirname, '..', '..')
let next: string
const environment = useFreshEnvironment()

beforeAll(async () => {
  next = await mkdtemp(path.join(tmpdir(), 'pg-lighter-next-'))
  for (const name of ['src', 'sql', 'package.json'])
    await cp(path.join(root, name), path.join(next, name), { recursive: true })
  await symlink(path.join(root, 'node_modules'), path.join(next, 'node_modules'))
  // What a migration may do: add. And functions that have changed are made anew, with the triggers.
  await writeFile(
    path.join(next, 'sql', 'migrations', '9999_next.sql'),
    `-- lock the attached tables first
     alter table lighter.inbox add column of_next integer;
     alter table lighter.waiting add column of_next integer;
     alter table lighter.leases add column of_next integer[];
     alter table lighter.objects add column of_next integer not null default 0;
     alter table lighter.loose_artifacts add column of_next text;
     alter table lighter.frames add column of_next text;
     alter table lighter.frame_exceptions add column of_next text;
     create index of_next on lighter.objects (of_next);
`,
  )
  await appendFile(path.join(next, 'sql', 'functions', '20_trigger.sql'), '\n-- as of the next version\n')
})
afterAll(() => rm(next, { recursive: true, force: true }))

const settings = () => ({ ...environment.env, LOG_LEVEL: 'info', OFFLOAD_BATCH_ROWS: '20' })
const artifacts = () => value<number>(environment.admin, 'select count(*)::int from artifact_refs')

test('the schema is migrated under running daemons, both versions work on one queue, and an old one does not start again', async () => {
  const { conversationId } = await newConversation(environment)
  const written = new Map<string, string>()
  let writing = true
  const writer = (async () => {
    while (writing) {
      const metadata = `{"tool_interactions": [${written.size}]}`
      written.set(await insertMessage(environment, conversationId, metadata), metadata)
    }
  })()
  const old = startCli(['start', '--no-api'], { env: settings() })
  await old.says('daemon started')
  await until(async () => (await artifacts()) > 50, 'the old version works')

  const migrated = await startCli(['migrate'], { env: settings(), root: next }).ended
  expect(migrated, migrated.stderr).toMatchObject({ code: 0 })
  const after = await artifacts()
  await until(async () => (await artifacts()) > after + 50, 'the old version works on the new schema')

  const young = startCli(['start', '--no-api'], { env: settings(), root: next })
  await young.says('daemon started')
  const batches = () => young.logged().filter(line => line.msg === 'batch').length
  await until(() => batches() > 3, 'the new version has its share')
  const both = old.logged().length
  await until(() => old.logged().length > both, 'the old version still has its own')

  old.signal('SIGTERM')
  expect((await old.ended).code).toBe(0)
  const again = await startCli(['start', '--no-api'], { env: settings() }).ended
  expect(again.code).toBe(1)
  expect(again.stdout).toContain('schema_newer')

  writing = false
  await writer
  await drained(environment)
  young.signal('SIGTERM')
  expect((await young.ended).code).toBe(0)
  expect(await hydratedMany(environment, [...written.keys()])).toEqual([...written.values()])
  expect(old.logged().filter(line => Number(line.level) >= 50)).toEqual([])
  expect(await value<number>(environment.admin, 'select count(*)::int from lighter.failed_jobs')).toBe(0)
  expect(await strayArtifacts(environment)).toEqual([])
  expect((await bucketMismatches(environment)).unregistered).toEqual([])
}, 120_000)

test('a daemon of the next version does not start on the schema of this one', async () => {
  const young = await startCli(['start', '--no-api'], { env: settings(), root: next }).ended
  expect(young.code).toBe(1)
  expect(young.stdout).toContain('schema_older')
  expect(young.stdout).toContain('lighter migrate')
})
