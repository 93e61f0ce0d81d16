// Tenants as people have them: named by texts and numbers, or one for all rows.
import { randomUUID } from 'node:crypto'
import { beforeEach, describe, expect, test } from 'vitest'
import { tenantIdOf } from '../../src/source/tenant-id.ts'
import { lighter, lighterOk } from '../support/black-box.ts'
import { createSignals, drained, startDaemon, useFreshEnvironment } from '../support/environment.ts'
import { hydratedRows, offloadedKeys } from '../support/key-tables.ts'
import { column, errorOf, value } from '../support/sql.ts'

const environment = useFreshEnvironment()
const nil = '00000000-0000-0000-0000-000000000000'
const document = '{"tool_interactions": [1]}'

beforeEach(() => environment.admin.query(`select lighter.set_defaults('0', '0')`))

const attach = (table: string, args = '') =>
  environment.admin.query(`select lighter.attach('${table}'${args})`)
const sourceRow = async (table: string) =>
  (
    await environment.admin.query(
      `select tenant_column, tenant_namespace, single_tenant, parent_relations::text from lighter.sources where relation = $1::regclass`,
      [table],
    )
  ).rows[0]
const tenantsOf = (table: string) =>
  column<string>(
    environment.admin,
    `select distinct a.tenant_id::text from public.artifact_refs a join lighter.sources s on s.id = a.source_id
      where s.relation = $1::regclass order by 1`,
    [table],
  )
const names = async () =>
  (
    await environment.admin.query(
      'select tenant_id, namespace, external_id from lighter.tenants order by external_id',
    )
  ).rows

async function offloaded(work: () => Promise<unknown>): Promise<void> {
  const daemon = await startDaemon(environment)
  await work()
  await drained(environment)
  await daemon.stop()
}

describe('a tenant that is named', () => {
  test.each([
    ['text', ['acme', '', ' ', '漢字 🚢', 'quo\'te"\\', '\u0001\u001f,', 'x'.repeat(5000), 'NULL']],
    ['varchar(20)', ['acme', 'b ']],
    ['smallint', ['-7']],
    ['integer', ['7', '-2147483648']],
    ['bigint', ['9223372036854775807']],
  ])('by a %s is the uuid of its name, and its name is on record', async (type, tenants) => {
    const { admin } = environment
    await admin.query(
      `create table notes (id bigint generated always as identity primary key, tenant_id ${type}, metadata jsonb)`,
    )
    await attach('notes')
    const namespace = tenantIdOf(nil, 'public.notes.tenant_id')
    expect(await sourceRow('notes')).toMatchObject({
      tenant_column: 'tenant_id',
      tenant_namespace: namespace,
    })
    await offloaded(async () => {
      for (const name of [...tenants, ...tenants])
        await admin.query(`insert into notes (tenant_id, metadata) values ($1::text::${type}, $2)`, [
          name,
          document,
        ])
    })
    expect(await tenantsOf('notes')).toEqual(tenants.map(name => tenantIdOf(namespace, name)).sort())
    expect((await names()).map(row => [row.tenant_id, row.external_id]).sort()).toEqual(
      tenants.map(name => [tenantIdOf(namespace, name), name]).sort(),
    )
    const keys = await offloadedKeys(environment, 'notes')
    expect(keys).toHaveLength(2 * tenants.length)
    for (const text of (await hydratedRows(environment, 'notes', keys)).values()) expect(text).toBe(document)
    for (const name of tenants)
      expect(await value(admin, 'select lighter.tenant_named($1)::text', [name])).toBe(
        tenantIdOf(namespace, name),
      )
  })

  test('comes from the column that it refers to: all that do name the same tenants, others do not', async () => {
    const { admin } = environment
    await admin.query(`
      create table accounts (id integer primary key);
      create table projects (id integer primary key);
      create table chats (id uuid primary key, account_id integer references accounts);
      create table notes (id integer primary key, account_id integer references accounts, metadata jsonb);
      create table messages (id integer primary key, chat_id uuid references chats, metadata jsonb);
      create table files (id integer primary key, project_id integer references projects, metadata jsonb);
      insert into accounts values (1);
      insert into projects values (1);
      insert into chats values ('${randomUUID()}', 1)`)
    await attach('notes', `, tenant_column => 'account_id'`)
    await attach('messages', `, tenant_column => 'account_id'`)
    await attach('files', `, tenant_column => 'project_id'`)
    expect(await sourceRow('messages')).toMatchObject({ parent_relations: '{chats}' })
    await offloaded(() =>
      admin.query(`
        insert into notes values (1, 1, '${document}');
        insert into messages select 1, id, '${document}' from chats;
        insert into files values (1, 1, '${document}')`),
    )
    const account = tenantIdOf(tenantIdOf(nil, 'public.accounts.id'), '1')
    const project = tenantIdOf(tenantIdOf(nil, 'public.projects.id'), '1')
    expect(await tenantsOf('notes')).toEqual([account])
    expect(await tenantsOf('messages')).toEqual([account])
    expect(await tenantsOf('files')).toEqual([project])
    expect(await errorOf(admin.query(`select lighter.tenant_named('1')`))).toMatchObject({
      code: '42P08',
      message: expect.stringContaining([account, project].sort().join(', ')),
      hint: expect.stringContaining('Pass one of these uuids'),
    })
    expect(await lighter(environment, ['restore', '--tenant', '1'])).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/several tenants are named "1": .*\nhint: Pass one of these uuids/),
    })
    await lighterOk(environment, ['restore', '--tenant', project])
    expect(await value(admin, `select metadata ? 'tool_interactions' from files`)).toBe(true)
    expect(await value(admin, `select metadata ? 'tool_interactions' from notes`)).toBe(false)
  })

  test('means the same in two tables when the operator says so', async () => {
    const { admin } = environment
    await admin.query(`
      create table notes (id integer primary key, tenant_id text, metadata jsonb);
      create table files (id integer primary key, tenant_id varchar(30), metadata jsonb);
      create table others (id integer primary key, tenant_id uuid, metadata jsonb)`)
    await attach('notes')
    const { tenant_namespace: namespace } = await sourceRow('notes')
    await attach('files', `, tenant_namespace => '${namespace}'`)
    expect(await errorOf(attach('others', `, tenant_namespace => '${namespace}'`))).toMatchObject({
      message: expect.stringContaining('tenant_namespace is for tenants that have names'),
      hint: 'Leave tenant_namespace out.',
    })
    await offloaded(() =>
      admin.query(
        `insert into notes values (1, 'acme', '${document}'); insert into files values (1, 'acme', '${document}')`,
      ),
    )
    expect(await tenantsOf('files')).toEqual(await tenantsOf('notes'))
    // It stays when it is attached again, detached and attached, under another name too.
    await attach('files', `, threshold_bytes => 5000`)
    expect(await sourceRow('files')).toMatchObject({ tenant_namespace: namespace })
    await admin.query(`select lighter.detach('files'); alter table files rename to documents`)
    await attach('documents')
    expect(await sourceRow('documents')).toMatchObject({ tenant_namespace: namespace })
    expect((await hydratedRows(environment, 'documents', ['1'])).get('1')).toBe(document)
    // Not to be changed while rows are offloaded.
    expect(await errorOf(attach('notes', `, tenant_namespace => '${randomUUID()}'`))).toMatchObject({
      code: '55006',
      message: expect.stringContaining('they could belong to another'),
    })
    expect(await errorOf(attach('notes', `, single_tenant => true`))).toMatchObject({ code: '55006' })
  })

  test('is accepted by its name wherever a tenant is named, and shown by it', async () => {
    const { admin } = environment
    await admin.query('create table notes (id integer primary key, tenant_id text, metadata jsonb)')
    await attach('notes')
    const daemon = await startDaemon(environment)
    await admin.query(
      `insert into notes select n, case when n < 3 then 'acme' else 'other' end, '${document}' from generate_series(1, 4) n`,
    )
    await drained(environment)
    const run = (...args: string[]) => lighterOk(environment, args)
    await run('sweep', 'rollup')
    const acme = await value<string>(admin, `select lighter.tenant_named('acme')::text`)
    expect(await run('stats')).toContain(`acme (${acme})`)
    expect(
      await value(admin, `select artifacts::int from lighter.storage_by_tenant where external_id = 'acme'`),
    ).toBe(2)
    expect(await run('retention', 'set', '--tenant', 'acme', '--days', '30')).toContain(acme)
    expect(await run('retention', 'explain', '--tenant', 'acme', '--kind', 'x')).toContain(`tenant ${acme}`)
    await run('sweep', 'verify', '--all', '--tenant', 'acme')
    await run('flush', '--tenant', 'acme')
    await run('backfill', '--tenant', 'acme')
    await daemon.stop()
    await run('restore', '--tenant', 'acme')
    expect(
      await column(admin, `select id from notes where metadata ? 'tool_interactions' order by 1`),
    ).toEqual([1, 2])
    await run('unpin', '--tenant', 'acme')
    expect(await value(admin, 'select count(*)::int from lighter.pins')).toBe(0)
    await run('erase', '--tenant', 'other', '--yes')
    expect(await tenantsOf('notes')).toEqual([acme])
    expect((await names()).map(row => row.external_id)).toEqual(['acme'])
    await admin.query(`select lighter.detach('notes')`)
    expect(await lighter(environment, ['flush', '--tenant', 'nobody'])).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/no tenant is named "nobody"\nhint: Pass the uuid/),
    })
  })

  test('by what looks like a uuid is not taken for the tenant of that uuid', async () => {
    const { admin } = environment
    const id = randomUUID()
    await admin.query(`
      create table notes (id integer primary key, tenant_id text, metadata jsonb);
      create table others (id integer primary key, tenant_id uuid, metadata jsonb)`)
    await attach('notes')
    await attach('others')
    await offloaded(() => admin.query(`insert into notes values (1, '${id}', '${document}')`))
    const named = tenantIdOf((await sourceRow('notes')).tenant_namespace, id)
    expect(await tenantsOf('notes')).toEqual([named])
    expect(await value(admin, `select lighter.tenant_named('${id}')::text`)).toBe(named)
    await offloaded(() => admin.query(`insert into others values (1, '${id}', '${document}')`))
    expect(await errorOf(admin.query(`select lighter.tenant_named('${id}')`))).toMatchObject({
      code: '42P08',
    })
    expect(await value(admin, `select lighter.tenant_named('${named}')::text`)).toBe(named)
  })

  test('keeps its plan and its hold when its name is written, and is not asked for again', async () => {
    const { admin } = environment
    await admin.query('create table notes (id integer primary key, tenant_id text, metadata jsonb)')
    await attach('notes')
    const namespace = (await sourceRow('notes')).tenant_namespace
    const acme = tenantIdOf(namespace, 'acme')
    await admin.query(`insert into lighter.tenants values ('${acme}', 'premium', true)`)
    await offloaded(() => admin.query(`insert into notes values (1, 'acme', '${document}')`))
    const row = async () => (await admin.query('select *, xmin from lighter.tenants')).rows[0]
    const first = await row()
    expect(first).toMatchObject({
      tenant_id: acme,
      plan: 'premium',
      legal_hold: true,
      namespace,
      external_id: 'acme',
    })
    await offloaded(() => admin.query(`insert into notes values (2, 'acme', '${document}')`))
    expect(await row()).toEqual(first)
  })

  test('that is null keeps its row inline, as one whose parent is gone does', async () => {
    const { admin } = environment
    await admin.query('create table notes (id integer primary key, tenant_id text, metadata jsonb)')
    await attach('notes')
    await offloaded(() =>
      admin.query(`insert into notes values (1, null, '${document}'), (2, '', '${document}')`),
    )
    expect(await offloadedKeys(environment, 'notes')).toEqual(['2'])
    expect(await column(admin, 'select row_id || last_error from lighter.failed_jobs')).toEqual([
      '1no tenant: tenant_id of the row is null or missing',
    ])
    expect(await value(admin, 'select metadata::text from notes where id = 1')).toBe(document)
  })

  test('is checked again by the commit: a row that changes its tenant meanwhile is another tenant’s', async () => {
    const { admin } = environment
    await admin.query(`
      create table chats (id integer primary key, tenant_id text);
      create table notes (id integer primary key, chat_id integer references chats, metadata jsonb);
      insert into chats values (1, 'acme')`)
    await attach('notes')
    const signals = createSignals()
    const hold = signals.holdAt('before-commit')
    await admin.query(`insert into notes values (1, 1, '${document}')`)
    const daemon = await startDaemon(environment, { signal: signals.signal })
    await hold.reached
    await admin.query(`update chats set tenant_id = 'other'`)
    hold.release()
    await drained(environment)
    await daemon.stop()
    expect(await tenantsOf('notes')).toEqual([
      await value(admin, `select lighter.tenant_named('other')::text`),
    ])
    expect((await hydratedRows(environment, 'notes', ['1'])).get('1')).toBe(document)
  })

  test('changes its type within those that write it in the same way, and else stops its table', async () => {
    const { admin } = environment
    await admin.query('create table notes (id integer primary key, tenant_id integer, metadata jsonb)')
    await attach('notes')
    const daemon = await startDaemon(environment)
    await admin.query(`insert into notes values (1, 7, '${document}')`)
    await drained(environment)
    await admin.query('alter table notes alter tenant_id type text')
    await admin.query(`insert into notes values (2, '7', '${document}')`)
    await drained(environment)
    expect(await tenantsOf('notes')).toHaveLength(1)
    await admin.query('alter table notes alter tenant_id type float8 using 7')
    expect(await column(admin, 'select part || reason from lighter.missing_parts')).toEqual([
      'tenant columnthe column is of type double precision now',
    ])
    await daemon.stop()
  })

  test.each([
    ['numeric', 'is of type numeric, not uuid, text'],
    ['date', 'is of type date, not uuid, text'],
    ['text collate blind', 'has a nondeterministic collation'],
  ])('by a column of type %s is refused', async (type, message) => {
    await environment.admin.query(`
      create collation if not exists blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
      create table notes (id integer primary key, tenant_id ${type}, metadata jsonb)`)
    expect(await errorOf(attach('notes'))).toMatchObject({
      message: expect.stringContaining(message),
      hint: expect.stringMatching(/single_tenant => true|alter table public.notes alter column tenant_id/),
    })
  })
})

describe('a tenant over several foreign keys', () => {
  const tables = `
    create table users (id uuid primary key, org text);
    create table chats (id bigint, user_id uuid references users, primary key (id)) partition by range (id);
    create table chats_1 partition of chats for values from (minvalue) to (maxvalue);
    create table messages (id integer primary key, chat_id bigint references chats, metadata jsonb)`
  const path = `, tenant_column => 'org', tenant_path => '{chat_id,user_id}'`

  test('is found by a path; where none was given the error names one', async () => {
    const { admin } = environment
    await admin.query(tables)
    const { message, hint } = await errorOf(attach('messages', `, tenant_column => 'org'`))
    expect(message).toMatch(/cannot tell the tenant of a row of public.messages/)
    expect(hint).toMatch("Pass tenant_path => '{chat_id,user_id}', which leads to public.users.org")
    expect(
      await errorOf(attach('messages', `, tenant_column => 'org', tenant_path => '{chat_id,id}'`)),
    ).toMatchObject({
      code: '42704',
      message: expect.stringContaining('public.chats.id is not a foreign key of one column'),
      hint: expect.stringContaining(`'{chat_id,user_id}'`),
    })
    const { decided } = JSON.parse(
      await lighterOk(environment, [
        'attach',
        'messages',
        '--tenant-column',
        'org',
        '--tenant-path',
        'chat_id,user_id',
        '--json',
      ]),
    )
    expect(decided).toMatchObject({
      tenant_column: 'org',
      parent_relations: 'public.chats, public.users',
      parent_columns: 'chat_id, user_id',
      parent_key_columns: 'id, id',
    })
    const [a, b, lost] = [randomUUID(), randomUUID(), randomUUID()]
    await offloaded(() =>
      admin.query(`
        insert into users values ('${a}', 'acme'), ('${b}', 'other'), ('${lost}', null);
        insert into chats values (1, '${a}'), (2, '${b}'), (3, '${lost}'), (4, null);
        insert into messages select n, n, '${document}' from generate_series(1, 4) n;
        insert into messages values (5, null, '${document}')`),
    )
    expect(await offloadedKeys(environment, 'messages')).toEqual(['1', '2'])
    expect((await names()).map(row => row.external_id)).toEqual(['acme', 'other'])
    expect(
      await column(admin, 'select row_id || left(last_error, 9) from lighter.failed_jobs order by 1'),
    ).toEqual(['3no tenant', '4no tenant', '5no tenant'])
    for (const text of (await hydratedRows(environment, 'messages', ['1', '2'])).values())
      expect(text).toBe(document)
    await lighterOk(environment, ['restore', '--tenant', 'acme'])
    expect(
      await column(admin, `select id from messages where metadata ? 'tool_interactions' order by 1`),
    ).toEqual([1, 3, 4, 5])
    // Attached again it stays.
    await attach('messages', ', threshold_bytes => 5000')
    expect(await sourceRow('messages')).toMatchObject({ parent_relations: '{chats,users}' })
    expect((await lighter(environment, ['doctor'])).stdout).not.toMatch(
      /^FAIL {2}(privileges|source|schema|obstacle)/m,
    )
  })

  test('is checked again by the commit, wherever on the path it changed', async () => {
    const { admin } = environment
    await admin.query(tables)
    await attach('messages', path)
    const [a, b] = [randomUUID(), randomUUID()]
    await admin.query(`
      insert into users values ('${a}', 'acme'), ('${b}', 'other');
      insert into chats values (1, '${a}');
      insert into messages values (1, 1, '${document}')`)
    const signals = createSignals()
    const hold = signals.holdAt('before-commit')
    const daemon = await startDaemon(environment, { signal: signals.signal })
    await hold.reached
    await admin.query(`update chats set user_id = '${b}'`)
    hold.release()
    await drained(environment)
    await daemon.stop()
    expect(await tenantsOf('messages')).toEqual([
      await value(admin, `select lighter.tenant_named('other')::text`),
    ])
  })

  test('columns on the path are followed when they are renamed, and missed when they are gone; detach takes the rights back', async () => {
    const { admin } = environment
    await admin.query(tables)
    await attach('messages', path)
    await admin.query('alter table chats rename user_id to owner_id; alter table users rename id to uid')
    const [a] = [randomUUID()]
    await offloaded(() =>
      admin.query(`
        insert into users values ('${a}', 'acme');
        insert into chats values (1, '${a}');
        insert into messages values (1, 1, '${document}')`),
    )
    expect(await offloadedKeys(environment, 'messages')).toEqual(['1'])
    const rights = () =>
      column(
        admin,
        `select distinct table_name::text from information_schema.column_privileges
          where grantee = 'lighter_daemon' and table_schema = 'public' and table_name in ('users', 'chats', 'messages') order by 1`,
      )
    expect(await rights()).toEqual(['chats', 'messages', 'users'])
    await admin.query('alter table chats drop owner_id')
    expect(await column(admin, 'select part || name from lighter.missing_parts where stops_offload')).toEqual(
      ['parent columnuser_id'],
    )
    await admin.query(`select lighter.detach('messages')`)
    expect(await rights()).toEqual([])
  })

  test('hidden rows of a table on the path stop its offload', async () => {
    const { admin } = environment
    await admin.query(tables)
    await attach('messages', path)
    await admin.query(
      'alter table users enable row level security; create policy strict on users as restrictive using (false)',
    )
    expect(
      await column(
        environment.worker,
        'select relation::text from lighter.hidden_tables() where source_id is not null',
      ),
    ).toEqual(['users'])
  })
})

describe('a single tenant', () => {
  test('is for tables where none is found, and only where it was said', async () => {
    const { admin } = environment
    await admin.query('create table notes (id integer primary key, metadata jsonb)')
    expect(await errorOf(attach('notes'))).toMatchObject({
      code: '42703',
      hint: expect.stringContaining('single_tenant => true'),
    })
    expect(await errorOf(attach('notes', `, single_tenant => true, tenant_column => 'id'`))).toMatchObject({
      code: '22023',
      hint: 'Pass single_tenant => true alone, or leave it out.',
    })
    const attached = JSON.parse(
      await lighterOk(environment, ['attach', 'notes', '--single-tenant', '--json']),
    )
    const single = tenantIdOf(nil, 'single')
    expect(attached.decided).toMatchObject({
      single_tenant: single,
      tenant_column: 'none',
      key_columns: 'id',
    })
    await offloaded(() => admin.query(`insert into notes values (1, '${document}')`))
    expect(await tenantsOf('notes')).toEqual([single])
    expect((await hydratedRows(environment, 'notes', ['1'])).get('1')).toBe(document)
    expect(await lighterOk(environment, ['hydrate', 'notes', '1'])).toBe(`${document}\n`)
    // Attached again it stays.
    await attach('notes', ', threshold_bytes => 5000')
    expect(await sourceRow('notes')).toMatchObject({ single_tenant: single, tenant_column: null })
    await lighterOk(environment, ['restore', '--tenant', 'single'])
    expect(await value(admin, 'select metadata::text from notes')).toBe(document)
    await lighter(environment, ['doctor']).then(({ stdout }) =>
      expect(stdout).not.toMatch(/^FAIL {2}(privileges|source|schema)/m),
    )
  })
})
