// Row-level security, policies and grants that hide rows from the daemon. What is hidden is not absent: nothing is
// deleted, nothing is taken for gone, and everybody is told.
import { randomUUID } from 'node:crypto'
import { expect, onTestFinished, test } from 'vitest'
import { startApi } from '../support/api.ts'
import { ageArtifacts } from '../support/artifacts.ts'
import { attach, createTable, hydratedByCli, lighter, lighterOk, settled } from '../support/black-box.ts'
import { startDaemon, until, useFreshEnvironment } from '../support/environment.ts'
import { column, errorOf } from '../support/sql.ts'

/** Many commands, each a process of its own. */
const slow = { timeout: 180_000 }

const environment = useFreshEnvironment()

/** What artifact_refs is a view of. */
const tablesOfArtifacts = ['lighter.loose_artifacts', 'lighter.frames', 'lighter.frame_exceptions']

const document = `{"tool_interactions": [{"text": "${'x'.repeat(2000)}"}]}`
const [held, premium, standard] = [randomUUID(), randomUUID(), randomUUID()]

/** Three tenants' notes, offloaded a year ago: one tenant on hold, one premium, one whose notes are to expire. */
async function yearOldNotes(): Promise<void> {
  await createTable(environment, 'notes', '(id bigint primary key, tenant_id uuid not null, metadata jsonb)')
  await attach(environment, 'notes')
  for (const [id, tenant] of [held, premium, standard].entries())
    await environment.app.query('insert into notes values ($1, $2, $3)', [id, tenant, document])
  const daemon = await startDaemon(environment)
  await settled(environment)
  await daemon.stop()
  await ageArtifacts(environment.admin, '1 year')
  await environment.admin.query(`
    update lighter.objects set created_at = created_at - interval '1 year', stored_at = stored_at - interval '1 year';
    delete from lighter.retention_policies;
    insert into lighter.retention_policies (plan, keep_days) values ('standard', 90), ('premium', null);
    insert into lighter.tenants (tenant_id, plan, legal_hold) values ('${held}', 'standard', true), ('${premium}', 'premium', false)`)
}

async function keys(): Promise<string[]> {
  const found: string[] = []
  for await (const { key } of environment.store.list(`${environment.store.prefix}tenants/`)) found.push(key)
  return found.sort()
}

async function liveArtifacts(): Promise<string[]> {
  const { rows } = await environment.admin.query<{ tenant_id: string }>(
    'select tenant_id from public.artifact_refs where deleted_at is null order by 1',
  )
  return rows.map(row => row.tenant_id)
}

/** The command fails, names the table and what to do, and nothing has left. */
async function expectRefusal(args: string[], table: string | RegExp, remedy: RegExp): Promise<void> {
  const before = { keys: await keys(), live: await liveArtifacts() }
  const finished = await lighter(environment, args)
  expect(finished.code, `lighter ${args.join(' ')}: ${finished.stdout}`).toBe(1)
  expect(finished.stderr).toMatch(table)
  expect(finished.stderr).toMatch(remedy)
  expect({ keys: await keys(), live: await liveArtifacts() }).toEqual(before)
}

test('nothing expires while row-level security hides what a deletion depends on', slow, async () => {
  await yearOldNotes()
  for (const table of ['tenants', 'legal_holds', 'schema_migrations']) {
    await environment.admin.query(`alter table lighter.${table} enable row level security`)
    await expectRefusal(['sweep', 'retention'], /row-level security/, /lighter migrate/)
    await environment.admin.query(`alter table lighter.${table} disable row level security`)
  }
  await lighterOk(environment, ['sweep', 'retention'])
  expect(await liveArtifacts()).toEqual([held, premium].sort())
})

test('no sweep and no erasure runs while holds are hidden', slow, async () => {
  await yearOldNotes()
  await environment.admin.query(
    `insert into lighter.legal_holds (tenant_id, entity_type, entity_id, reason) values ('${standard}', 'lead', gen_random_uuid(), 'court');
     alter table lighter.legal_holds enable row level security`,
  )
  const erase = ['erase', '--tenant', standard, '--yes']
  for (const args of [...['release', 'compaction', 'orphans'].map(name => ['sweep', name]), erase])
    await expectRefusal(args, 'lighter.legal_holds', /lighter migrate/)
})

test('no object counts as empty while the policy of artifact_refs is gone', slow, async () => {
  await yearOldNotes()
  for (const table of tablesOfArtifacts) {
    await environment.admin.query(`drop policy lighter_daemon on ${table}`)
    for (const name of ['retention', 'orphans', 'verify'])
      await expectRefusal(['sweep', name], table, /lighter migrate/)
    await environment.admin.query(
      `create policy lighter_daemon on ${table} for all to lighter_daemon using (true) with check (true)`,
    )
  }
})

test(
  'an unseen deletion is not caught up with: what waits to be deleted stays while artifacts are hidden',
  slow,
  async () => {
    await yearOldNotes()
    await lighterOk(environment, ['sweep', 'retention'])
    await environment.admin.query(`
    update public.artifact_refs set deleted_at = deleted_at - interval '1 year' where deleted_at is not null`)
    for (const table of tablesOfArtifacts) {
      await environment.admin.query(
        `create policy business_hours on ${table} as restrictive for select using (false)`,
      )
      await expectRefusal(['sweep', 'retention'], table, /business_hours/)
      await expectRefusal(['sweep', 'orphans', '--deep', '--delete-unknown'], table, /except lighter_daemon/)
      await environment.admin.query(`drop policy business_hours on ${table}`)
    }
  },
)

test('no frame is forgotten, and no hash in one, while objects or its artifacts are hidden', async () => {
  await yearOldNotes()
  await environment.admin.query(
    `update artifact_refs set purged_at = now() - interval '1 year', deleted_at = now() - interval '2 years';
     update lighter.frames set voids = array(select o::int2 from generate_series(0, cardinality(sizes) - 1) o)`,
  )
  const frames = () => column(environment.admin, 'select f::text from lighter.frames f order by id')
  const before = await frames()
  expect(before).not.toEqual([])
  for (const table of ['lighter.objects', 'lighter.frames', 'lighter.frame_exceptions']) {
    await environment.admin.query(`
      alter table ${table} enable row level security;
      create policy business_hours on ${table} as restrictive for select using (false)`)
    expect(await errorOf(environment.worker.query('select lighter.forget_frames()'))).toMatchObject({
      code: '55L01',
      message: expect.stringContaining(table),
    })
    await expectRefusal(['sweep', 'retention'], table, /business_hours/)
    await environment.admin.query(`drop policy business_hours on ${table}`)
  }
  expect(await frames()).toEqual(before)
})

test('start refuses, doctor fails and readyz says so while rows of ours are hidden', async () => {
  await yearOldNotes()
  const api = await startApi(environment)
  onTestFinished(() => api.daemon.stop().then(() => undefined))
  expect((await api.call(null, 'GET', '/readyz')).json).toMatchObject({ status: 'ok', database: 'ok' })
  await environment.admin.query('alter table lighter.tenants enable row level security')
  await until(async () => (await api.call(null, 'GET', '/readyz')).status === 503, 'readyz notices', 15_000)
  expect((await api.call(null, 'GET', '/readyz')).json).toMatchObject({ database: 'rows_hidden' })
  const started = await lighter(environment, ['start'], { env: { LOG_LEVEL: 'info' } })
  expect(started.code).toBe(1)
  expect(started.stdout + started.stderr).toMatch(/lighter\.tenants: row-level security/)
  expect(started.stdout + started.stderr).toContain('lighter migrate')
  const examined = await lighter(environment, ['doctor'])
  expect(examined.code).toBe(1)
  expect(examined.stdout).toMatch(/^FAIL .*lighter\.tenants/m)
})

test('rows of an attached table whose policy was dropped are neither gone nor given up, and offloaded later', async () => {
  await createTable(environment, 'notes', '(id bigint primary key, tenant_id uuid not null, metadata jsonb)')
  await attach(environment, 'notes')
  await environment.admin.query(`
    alter table notes enable row level security;
    create policy application on notes to public using (current_user <> 'lighter_daemon' and not pg_has_role(current_user, 'lighter_daemon', 'usage'));
    drop policy lighter_daemon on notes`)
  const daemon = await startDaemon(environment, { env: { OFFLOAD_MAX_ATTEMPTS: '1' } })
  onTestFinished(() => daemon.stop().then(() => undefined))
  await environment.app.query('insert into notes values (1, $1, $2)', [standard, document])
  await until(async () => {
    const { rows } = await environment.admin.query('select last_error from lighter.jobs')
    return /row-level security.*lighter attach/.test(rows[0]?.last_error)
  }, 'the job says why it waits')
  // Attached again by its owner: that adds the policy.
  await attach(environment, 'notes')
  await settled(environment)
  expect(await hydratedByCli(environment, 'notes', '1')).toBe(document)
  const { rows } = await environment.admin.query(
    'select (select count(*)::int from public.artifact_refs) as artifacts, (select count(*)::int from lighter.failed_jobs) as dead',
  )
  expect(rows).toEqual([{ artifacts: 1, dead: 0 }])
})

test('restore, backfill and hydrate refuse a table of which rows are hidden', async () => {
  await yearOldNotes()
  await environment.admin.query(`
    alter table notes enable row level security;
    create policy narrow on notes as restrictive for all using (id <> 1)`)
  for (const args of [
    ['restore', '--all'],
    ['backfill', '--table', 'notes'],
    ['hydrate', '1', '--table', 'notes'],
  ])
    await expectRefusal(args, 'notes', /restrictive policies.*narrow/)
  await expectRefusal(['sweep', 'release'], 'notes', /narrow/)
})
