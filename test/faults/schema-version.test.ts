// A program that meets the schema of another version says what to do, and touches nothing.
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createEnvironment, type TestEnvironment } from '../support/environment.ts'
import { temporaryDir } from '../support/own-server.ts'
import { runCli } from '../support/process.ts'

const tenant = '00000000-0000-4000-8000-000000000001'
const commands: [command: string, args: string[]][] = [
  ['start', []],
  ['doctor', []],
  ['attach', ['public.conversation_messages']],
  ['detach', ['public.conversation_messages']],
  ['hydrate', [tenant]],
  ['retry', []],
  ['backfill', []],
  ['restore', ['--all']],
  ['unpin', ['--all']],
  ['sweep', ['orphans']],
  ['retention', ['explain', '--tenant', tenant, '--kind', 'agent_trace']],
  ['export', ['--tenant', tenant, '--to']],
  ['erase', ['--tenant', tenant, '--yes']],
  ['adopt', ['--yes']],
]

const migrations = readdirSync(path.join(import.meta.dirname, '..', '..', 'sql', 'migrations')).sort()
const last = `migrations/${migrations.at(-1)}`

describe.for([
  {
    name: 'an older',
    sql: `delete from lighter.schema_migrations where name = '${last}'`,
    says: 'lighter migrate',
    refusing: commands,
  },
  {
    name: 'a newer',
    sql: `insert into lighter.schema_migrations (name, checksum) values ('migrations/9999_of_the_future.sql', 'x')`,
    says: 'upgrade this one',
    // All find it out in the same way.
    refusing: commands
      .filter(([command]) => /^(start|attach|sweep)$/.test(command))
      .concat([['migrate', []]]),
  },
])('$name schema', ({ sql, says, refusing }) => {
  let environment: TestEnvironment
  beforeAll(async () => {
    environment = await createEnvironment()
    await environment.admin.query(sql)
  })
  afterAll(() => environment.close())

  test.for(refusing)('is refused by %s, with advice', async ([command, args]) => {
    const last = args.at(-1) === '--to' ? [await temporaryDir('export')] : []
    const { code, stdout, stderr } = await runCli([command, ...args, ...last], {
      env: { ...environment.env, LOG_LEVEL: 'info' },
    })
    expect({ code, said: stdout + stderr }).toEqual({ code: 1, said: expect.stringContaining(says) })
    const { rows } = await environment.admin.query(
      `select (select count(*)::int from lighter.sources) as sources, (select count(*)::int from lighter.sweep_runs) as sweeps,
              (select owner_etag from lighter.installation) as owner`,
    )
    expect(rows).toEqual([{ sources: 1, sweeps: 0, owner: null }])
  })
})
