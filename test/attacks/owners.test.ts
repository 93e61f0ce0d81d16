// Whoever owns a table decides what code runs when others read and write it. It must not run as our owner.
import { randomUUID } from 'node:crypto'
import type pg from 'pg'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { lighter } from '../support/black-box.ts'
import { createEnvironment, useEnvironment } from '../support/environment.ts'
import { asRole, column, connect, errorOf, uniqueRole, value } from '../support/sql.ts'

const environment = await useEnvironment()
const mallory = uniqueRole('mallory')
let client: pg.Client

/** Whoever runs a function of mallory's is noted. */
const ranAs = () => column<string>(environment.admin, 'select distinct who from evil.ran order by 1')

beforeAll(async () => {
  await environment.admin.query(`
    create role ${mallory} login password 'mallory';
    create schema evil authorization ${mallory}`)
  const url = new URL(environment.urls.admin)
  url.username = mallory
  url.password = 'mallory'
  client = await connect(url.href)
  await client.query(`
    create table evil.ran (who text);
    grant usage on schema evil to public;
    grant insert on evil.ran to public;
    create function evil.note() returns boolean language plpgsql as $$
    begin insert into evil.ran values (current_user); return true; end $$;
    create function evil.note_row() returns trigger language plpgsql as $$
    begin perform evil.note(); return new; end $$`)
})

afterAll(async () => {
  await client.end()
  await environment.admin.query(`
    alter table lighter.loose_artifacts owner to current_user;
    drop owned by ${mallory} cascade; drop role ${mallory}`)
})

beforeEach(() => environment.admin.query('delete from evil.ran'))

describe('a table of a role that may not act as our owner', () => {
  beforeAll(() =>
    client
      .query('create table evil.notes (id bigint primary key, tenant_id uuid, metadata jsonb)')
      .then(() => undefined),
  )

  test('is not attached; the message names both, and what to do', async () => {
    const owner = new URL(environment.urls.admin).username
    expect(await errorOf(environment.admin.query(`select lighter.attach('evil.notes')`))).toMatchObject({
      code: '42501',
      message: expect.stringMatching(
        new RegExp(`evil.notes belongs to "${mallory}", who may not act as "${owner}"`),
      ),
      hint: expect.stringContaining('trust_owner'),
    })
    const refused = await lighter(environment, ['attach', 'evil.notes'], {
      env: { ADMIN_DATABASE_URL: environment.urls.admin },
    })
    expect(refused).toMatchObject({ code: 1, stderr: expect.stringContaining('--trust-owner') })
  })

  test('is refused as a partition of a table of ours too, and as the one with the tenants', async () => {
    await environment.admin.query(`
      create table split (id bigint, tenant_id uuid, metadata jsonb, primary key (id)) partition by range (id);
      create table split_1 partition of split for values from (0) to (100);
      alter table split_1 owner to ${mallory};
      create table evil.parents (id bigint primary key, tenant_id uuid);
      alter table evil.parents owner to ${mallory};
      create table children (id bigint primary key, parent_id bigint references evil.parents, metadata jsonb)`)
    for (const [table, untrusted] of [
      ['split', 'split_1'],
      ['children', 'evil.parents'],
    ])
      expect(await errorOf(environment.admin.query(`select lighter.attach('${table}')`))).toMatchObject({
        code: '42501',
        message: expect.stringContaining(`${untrusted} belongs to "${mallory}"`),
      })
    await environment.admin.query('drop table split, children, evil.parents')
  })

  test('is attached when that is asked for, with a warning', async () => {
    const warnings: string[] = []
    const admin = await connect(environment.urls.admin)
    try {
      admin.on('notice', notice => {
        if (notice.severity === 'WARNING') warnings.push(notice.message ?? '')
      })
      await admin.query(`select lighter.attach('evil.notes', trust_owner => true)`)
      expect(warnings).toEqual([expect.stringContaining(`belongs to "${mallory}"`)])
      await admin.query(`select lighter.detach('evil.notes')`)
    } finally {
      await admin.end()
    }
  })
})

test('who may put triggers on an attached table, or owns the function of one, is named', async () => {
  await environment.admin.query(`
    create table named (id bigint primary key, tenant_id uuid, metadata jsonb);
    grant trigger on named to ${mallory};
    create trigger edited before update on named for each row execute function evil.note_row()`)
  const report = async () =>
    column<string>(
      environment.admin,
      `select found from lighter.check_attach('named', skip_triggers => false) where what = 'warning' order by 1`,
    )
  expect(await report()).toEqual([
    expect.stringContaining(`${mallory} may put triggers on public.named`),
    expect.stringContaining(`that function belongs to "${mallory}"`),
  ])
  await environment.admin.query(`revoke trigger on named from ${mallory}; drop trigger edited on named`)
  expect(await report()).toEqual([])
  await environment.admin.query('drop table named')
})

describe('the owner of the table of loose artifacts', () => {
  const insert = (db: pg.Client) =>
    db.query(
      `insert into lighter.loose_artifacts (id, tenant_id, kind, r2_key) values (gen_random_uuid(), gen_random_uuid(), 'agent_trace', $1)`,
      [`tenants/${randomUUID()}/x`],
    )

  test('who may not act as our owner gets no function of ours to run code for them', async () => {
    const kindIsUsed = await column<string>(
      environment.admin,
      `select distinct v.oid::regclass::text from pg_depend d join pg_rewrite r on r.oid = d.objid join pg_class v on v.oid = r.ev_class
        where d.refobjid = 'lighter.loose_artifacts'::regclass`,
    )
    await environment.admin.query(`grant create, usage on schema lighter to ${mallory}`)
    // Reports read the columns, which keeps their types; here they are out of the way.
    await environment.admin.query(
      `drop view ${kindIsUsed.join(', ')} cascade; alter table lighter.loose_artifacts owner to ${mallory}`,
    )
    await client.query(`
      create domain evil.kind as text check (evil.note());
      alter table lighter.loose_artifacts no force row level security;
      alter table lighter.loose_artifacts alter column content_type type evil.kind;
      create trigger evil before insert on lighter.loose_artifacts for each row execute function evil.note_row()`)
    await client
      .query(`alter table lighter.loose_artifacts alter column kind type evil.kind`)
      .catch(() => undefined)
    const before = await value(environment.admin, 'select count(*)::int from lighter.storage_changes')
    await insert(client)
    expect(await ranAs()).toEqual([mallory])
    expect(await value(environment.admin, 'select count(*)::int from lighter.storage_changes')).toBe(before)
    const tenant = randomUUID()
    const store = asRole(environment.admin, 'lighter_tenant', async db => {
      await db.query(`select set_config('app.current_tenant_id', $1, true)`, [tenant])
      await db.query(
        `select lighter.api_register_object($1, 'agent_trace', 'application/json', null, 1, 60000)`,
        [`tenants/${tenant}/agent_trace/x.json`],
      )
    })
    expect(await errorOf(store)).toMatchObject({
      code: '42501',
      message: expect.stringContaining('lighter.loose_artifacts'),
    })
    expect(await ranAs()).toEqual([mallory])
  })

  test('must be able to act as who migrates: else the table is not adopted', async () => {
    const other = await createEnvironment({ empty: true })
    try {
      await other.admin.query(`
        create table artifact_refs (
          id uuid primary key default gen_random_uuid(), tenant_id uuid not null, kind text not null, entity_type text,
          entity_id uuid, r2_key text not null, content_type text, size_bytes bigint, sha256 text, created_by uuid,
          created_at timestamptz not null default now());
        alter table artifact_refs owner to ${mallory}`)
      const admin = { env: { ADMIN_DATABASE_URL: other.urls.admin } }
      expect(await lighter(other, ['migrate'], admin)).toMatchObject({
        code: 1,
        stderr: expect.stringMatching(
          new RegExp(
            `artifact_refs exists and belongs to "${mallory}"[^]*alter table public.artifact_refs owner to`,
          ),
        ),
      })
      await other.admin.query('alter table artifact_refs owner to current_user')
      expect(await lighter(other, ['migrate'], admin)).toMatchObject({ code: 0 })
    } finally {
      await other.close()
    }
  })
})
