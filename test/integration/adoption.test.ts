import { randomUUID } from 'node:crypto'
import type pg from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { migrate } from '../../src/db/migrate.ts'
import {
  asJsonbText,
  drained,
  hydrated,
  insertMessage,
  rawMetadata,
  startDaemon,
} from '../support/environment.ts'
import { type OwnedDatabase, openOwnedDatabase } from '../support/owned-database.ts'
import {
  asRole,
  column,
  connect,
  errorOf,
  originalArtifactRefs,
  originalTables,
  uniqueRole,
  value,
} from '../support/sql.ts'

const tenants = { a: randomUUID(), b: randomUUID() }

const documentedInsert = `
  insert into artifact_refs (tenant_id, kind, entity_type, entity_id, r2_key, content_type, size_bytes, sha256, created_by)
  values ($1, 'document_analysis', 'conversation', $2, $3, 'application/json', 17, repeat('0', 64), $2) returning id`

describe('an artifact_refs with rows, made by the original migration', () => {
  let db: OwnedDatabase
  const conversation = randomUUID()
  const old: { id: string; tenant: string }[] = []

  beforeAll(async () => {
    db = await openOwnedDatabase()
    await db.pool.query(originalTables({ tenantColumn: false }))
    await db.pool.query(originalArtifactRefs)
    for (const tenant of [tenants.a, tenants.a, tenants.b]) {
      const key = `tenants/${tenant}/document_analysis/2025/01/01/${randomUUID()}.json`
      old.push({ id: await value(db.pool, documentedInsert, [tenant, conversation, key]), tenant })
    }
    await db.migrate()
    await db.pool.query(`select lighter.attach('conversation_messages')`)
  })
  afterAll(() => db.close())

  const ids = (tenant: string) => old.filter(row => row.tenant === tenant).map(row => row.id)

  test('keeps its rows, which our readers find, each in its tenant only', async () => {
    const list = (tenant: string) =>
      column<string>(
        db.environment.worker,
        `select id from lighter.artifact_list($1, 'document_analysis') order by id`,
        [tenant],
      )
    expect(await list(tenants.a)).toEqual(ids(tenants.a).sort())
    expect(await list(tenants.b)).toEqual(ids(tenants.b))
    expect(await list(randomUUID())).toEqual([])
    const ofEntity = await column(
      db.environment.worker,
      `select id from lighter.artifacts_for_entity($1, 'conversation', $2) order by id`,
      [tenants.a, conversation],
    )
    expect(ofEntity).toEqual(ids(tenants.a).sort())
    const [own] = ids(tenants.a)
    const get = 'select * from lighter.artifact_get($1, $2)'
    const { rows } = await db.environment.worker.query(get, [tenants.a, own])
    expect(rows).toMatchObject([
      { id: own, kind: 'document_analysis', size_bytes: '17', byte_offset: null, deleted_at: null },
    ])
    expect((await db.environment.worker.query(get, [tenants.b, own])).rows).toEqual([])
  })

  test.each(['owner', 'service_role'])('goes on taking the documented columns from %s', async who => {
    const role = who === 'owner' ? db.owner : who
    const key = `tenants/${tenants.a}/own/${randomUUID()}.json`
    // An owner is itself, not the superuser in its clothes; service_role is what it is on Supabase.
    const pool = who === 'owner' ? db.pool : db.environment.admin
    const id = await asRole(pool, role, inserter =>
      value<string>(inserter, documentedInsert, [tenants.a, conversation, key]),
    )
    const seen = await asRole(pool, role, reader =>
      column(reader, 'update artifact_refs set content_type = $2 where id = $1 returning r2_key', [
        id,
        'text/plain',
      ]),
    )
    expect(seen).toEqual([key])
    expect(
      await column(db.environment.worker, 'select id from lighter.artifact_get($1, $2)', [tenants.a, id]),
    ).toEqual([id])
    await asRole(pool, role, remover => remover.query('delete from artifact_refs where id = $1', [id]))
  })

  test('has nothing expire that was there before, until somebody says so', async () => {
    expect(
      await value(
        db.pool,
        `select keep_days from lighter.retention_policies where plan = 'standard' and tenant_id is null and kind is null`,
      ),
    ).toBeNull()
  })

  test('keeps the index that its own statements may count on, beside ours of what is alive', async () => {
    expect(
      await column(
        db.pool,
        `select c.relname::text from pg_index i join pg_class c on c.oid = i.indexrelid
          where i.indrelid = 'lighter.loose_artifacts'::regclass and c.relname ~ 'kind|_live$' order by 1`,
      ),
    ).toEqual(['artifact_refs_tenant_kind', 'loose_artifacts_live'])
  })

  test('holds many artifacts of one object, and of packs none', async () => {
    for (let n = 0; n < 3; n++) {
      await db.environment.worker.query(
        `insert into artifact_refs (tenant_id, kind, r2_key) values ($1, 'k', 'one')`,
        [tenants.b],
      )
    }
    for (const place of ['byte_offset', 'byte_length', 'frame_offset']) {
      const error = await errorOf(
        db.environment.worker.query(
          `insert into artifact_refs (tenant_id, kind, r2_key, ${place}) values ($1, 'k', 'pack', 0)`,
          [tenants.b],
        ),
      )
      expect(error, place).toMatchObject({ code: '23514', hint: expect.stringContaining('Leave them out') })
    }
    expect(
      await column(
        db.environment.worker,
        `select count(*)::int from artifact_refs where tenant_id = $1 and kind = 'k' group by r2_key`,
        [tenants.b],
      ),
    ).toEqual([3])
  })

  test('lets the daemon read, write, change and delete in every tenant', async () => {
    const key = randomUUID()
    const daemon = db.environment.worker
    for (const tenant of Object.values(tenants)) {
      await daemon.query(`insert into artifact_refs (tenant_id, kind, r2_key) values ($1, 'k', $2)`, [
        tenant,
        key,
      ])
    }
    const touched = await column(
      daemon,
      'update artifact_refs set deleted_at = now() where r2_key = $1 returning tenant_id',
      [key],
    )
    expect(touched.sort()).toEqual(Object.values(tenants).sort())
    expect((await daemon.query('delete from artifact_refs where r2_key = $1', [key])).rowCount).toBe(2)
  })

  describe('for a request of a tenant', () => {
    const asTenant = <T>(setting: string | null, work: (reader: pg.PoolClient) => Promise<T>) =>
      asRole(db.environment.admin, 'lighter_tenant', async reader => {
        if (setting !== null)
          await reader.query(`select set_config('app.current_tenant_id', $1, true)`, [setting])
        return work(reader)
      })
    const visible = (setting: string | null) =>
      asTenant(setting, reader => column<string>(reader, 'select distinct tenant_id from artifact_refs'))

    test('shows the rows of app.current_tenant_id, in either case', async () => {
      expect(await visible(tenants.a)).toEqual([tenants.a])
      expect(await visible(tenants.b.toUpperCase())).toEqual([tenants.b])
    })

    test.each([
      ['unset', null],
      ['empty', ''],
      ['another tenant', randomUUID()],
      ['rubbish', 'rubbish'],
      ['the nil uuid', '00000000-0000-0000-0000-000000000000'],
      ['something that spells SQL', `' or true --`],
      ['a wildcard', '%'],
      ['two tenants', `${tenants.a},${tenants.b}`],
      ['a tenant with a line break', `${tenants.a}\n`],
    ])('shows nothing, and is no error, when it is %s', async (_, setting) => {
      expect(await visible(setting)).toEqual([])
    })

    test('shows the same through the functions, whatever tenant they are asked for', async () => {
      const [own] = ids(tenants.a)
      const found = await asTenant(tenants.b, async reader => [
        ...(await column(reader, 'select id from lighter.artifact_get($1, $2)', [tenants.a, own])),
        ...(await column(reader, 'select id from lighter.artifact_list($1)', [tenants.a])),
        ...(await column(reader, `select id from lighter.artifacts_for_entity($1, 'conversation', $2)`, [
          tenants.a,
          conversation,
        ])),
      ])
      expect(found).toEqual([])
      expect(
        await asTenant(tenants.a, reader =>
          column(reader, 'select id from lighter.artifact_get($1, $2)', [tenants.a, own]),
        ),
      ).toEqual([own])
    })

    test('is not widened by a policy for every role, which narrows nobody else either', async () => {
      await db.pool.query(
        `create policy "Service role has full access" on lighter.loose_artifacts using (true) with check (true)`,
      )
      try {
        expect(await visible(tenants.a)).toEqual([tenants.a])
        expect(await visible(null)).toEqual([])
        // A login that may become either, as one that serves the API and works has to.
        const both = uniqueRole('both')
        await db.environment.admin.query(`create role ${both} in role lighter_daemon, lighter_tenant`)
        const seen = await asRole(db.environment.admin, both, reader =>
          column(reader, 'select distinct tenant_id from artifact_refs order by 1'),
        )
        await db.environment.admin.query(`drop role ${both}`)
        expect(seen).toEqual(Object.values(tenants).sort())
      } finally {
        await db.pool.query('drop policy "Service role has full access" on lighter.loose_artifacts')
      }
    })

    test.each([
      `insert into artifact_refs (tenant_id, kind, r2_key) values ('${tenants.a}', 'k', 'x')`,
      'update artifact_refs set deleted_at = now()',
      'delete from artifact_refs',
      `insert into lighter.loose_artifacts (tenant_id, kind, r2_key) values ('${tenants.a}', 'k', 'x')`,
      'update lighter.loose_artifacts set deleted_at = now()',
      'delete from lighter.loose_artifacts',
      'truncate lighter.loose_artifacts',
      'delete from lighter.frames',
      'update lighter.frames set voids = voids',
      'delete from lighter.frame_exceptions',
      'truncate lighter.frames cascade',
      'select * from lighter.jobs',
      'select * from lighter.inbox',
      'select * from lighter.waiting',
      'select * from lighter.leases',
      'select * from lighter.objects',
      'select * from lighter.storage_by_tenant',
      'select * from conversation_messages',
      `select lighter.requeue('conversation_messages', array[]::text[])`,
    ])('refuses %s', async sql => {
      expect((await errorOf(asTenant(tenants.a, reader => reader.query(sql)))).code).toBe('42501')
    })
  })

  test.each(['anon', 'authenticated'])('gives nothing to %s', async role => {
    for (const sql of [
      'select count(*) from artifact_refs',
      `insert into artifact_refs (tenant_id, kind, r2_key) values ('${tenants.a}', 'k', 'x')`,
      'delete from artifact_refs',
      'select count(*) from lighter.loose_artifacts',
      'select count(*) from lighter.frames',
      `select * from lighter.artifact_list('${tenants.a}')`,
      'select count(*) from lighter.jobs',
      'select count(*) from lighter.inbox',
      'select count(*) from lighter.leases',
    ]) {
      const attempt = asRole(db.environment.admin, role, stranger => stranger.query(sql))
      expect((await errorOf(attempt)).code, sql).toBe('42501')
    }
  })

  test('may get, and lose, columns of the application without our readers failing', async () => {
    const [own] = ids(tenants.a)
    const read = () =>
      db.environment.worker.query('select * from lighter.artifact_get($1, $2)', [tenants.a, own])
    const { rows: before } = await read()
    await db.pool.query(`alter table lighter.loose_artifacts add column label text default 'mine'`)
    // On the table, where it is: the view has the documented columns and ours.
    expect((await read()).rows).toEqual(before)
    expect(await value(db.pool, 'select label from lighter.loose_artifacts where id = $1', [own])).toBe(
      'mine',
    )
    const id = await value(db.environment.worker, documentedInsert, [tenants.a, conversation, 'labelled'])
    expect(await value(db.pool, 'select label from lighter.loose_artifacts where id = $1', [id])).toBe('mine')
    await db.pool.query('delete from artifact_refs where id = $1', [id])
    await db.pool.query('alter table lighter.loose_artifacts drop column label')
    expect((await read()).rows).toMatchObject([{ id: own }])
    expect(
      await column(db.environment.worker, 'select id from lighter.artifact_list($1)', [tenants.a]),
    ).toContain(own)
  })

  test('outlives the schema lighter when it is brought back first, and can be adopted again', async () => {
    const before = await column<string>(db.pool, 'select id from artifact_refs order by id')
    expect(before).toEqual(expect.arrayContaining(old.map(row => row.id)))
    await db.pool.query(`
      drop view public.artifact_refs cascade;
      alter table lighter.loose_artifacts set schema public;
      alter table public.loose_artifacts rename to artifact_refs;
      drop schema lighter cascade`)
    expect(await column(db.pool, 'select id from artifact_refs order by id')).toEqual(before)
    await db.pool.query(`insert into artifact_refs (tenant_id, kind, r2_key) values ($1, 'n', 'between')`, [
      tenants.a,
    ])
    await db.migrate()
    const { rows } = await db.environment.worker.query(`select r2_key from lighter.artifact_list($1, 'n')`, [
      tenants.a,
    ])
    expect(rows).toEqual([{ r2_key: 'between' }])
    expect(await column(db.pool, `select id from artifact_refs where kind <> 'n' order by id`)).toEqual(
      before,
    )
    expect(await column(db.pool, `select sum(artifacts)::int from lighter.storage_by_kind`)).toEqual([
      before.length + 1,
    ])
  })

  test('is refused when it has changed hands, to somebody who may not act as our owner', async () => {
    const heir = uniqueRole('heir')
    await db.environment.admin.query(
      `create role ${heir}; alter table lighter.loose_artifacts owner to ${heir}; grant ${heir} to ${db.owner}`,
    )
    await db.pool.query(`update lighter.schema_migrations set checksum = 'old' where name = 'grants.sql'`)
    try {
      expect(await errorOf(db.migrate())).toMatchObject({
        code: 'migration_failed',
        message: expect.stringContaining(`belongs to "${heir}", who may not act as "${db.owner}"`),
        hint: expect.stringContaining(`alter table lighter.loose_artifacts owner to ${db.owner};`),
      })
    } finally {
      await db.environment.admin.query(
        `alter table lighter.loose_artifacts owner to ${db.owner}; alter policy lighter_owner on lighter.loose_artifacts to ${db.owner}; drop role ${heir}`,
      )
    }
    await db.migrate()
  })
})

describe('an artifact_refs of another make', () => {
  let db: OwnedDatabase
  beforeEach(async () => {
    db = await openOwnedDatabase()
    await db.pool.query(originalArtifactRefs)
  })
  afterEach(() => db.close())

  /** All that a failed adoption could have left. */
  const state = async () => ({
    schema: await column(db.pool, `select nspname from pg_namespace where nspname = 'lighter'`),
    columns: await column(
      db.pool,
      `select attname || ' ' || format_type(atttypid, atttypmod) from pg_attribute
        where attrelid = 'artifact_refs'::regclass and attnum > 0 and not attisdropped order by attnum`,
    ),
    indexes: await column(
      db.pool,
      `select indexdef from pg_indexes where tablename = 'artifact_refs' order by indexname`,
    ),
    policies: await column(
      db.pool,
      `select polname from pg_policy where polrelid = 'artifact_refs'::regclass`,
    ),
  })

  test.each([
    [
      'lacks a column',
      'alter table artifact_refs drop column sha256',
      /lacks sha256 text$/,
      /add \(or alter\)/,
    ],
    [
      'has columns of other types',
      'alter table artifact_refs alter size_bytes type integer, alter entity_id type text',
      /lacks .*entity_id uuid.*size_bytes bigint|lacks .*size_bytes bigint.*entity_id uuid/,
      /add \(or alter\)/,
    ],
    [
      'demands values that we do not have',
      "alter table artifact_refs add column bucket text not null, add column region text not null default 'auto'",
      /demands values that pg-lighter does not have: bucket$/,
      /default/,
    ],
  ])('that %s is refused, saying so, and nothing is changed', async (_, change, message, hint) => {
    await db.pool.query(change)
    const before = await state()
    const error = await errorOf(db.migrate())
    expect(error).toEqual({
      code: 'migration_failed',
      message: expect.stringMatching(message),
      hint: expect.stringMatching(hint),
    })
    expect(error.message).toContain('public.artifact_refs')
    expect(await state()).toEqual(before)
  })

  test('that belongs to another role is refused, naming both', async () => {
    const other = uniqueRole('other')
    await db.environment.admin.query(`create role ${other}; alter table artifact_refs owner to ${other}`)
    try {
      expect(await errorOf(db.migrate())).toEqual({
        code: 'rights_missing',
        message: `public.artifact_refs belongs to "${other}", not to "${db.owner}"`,
        hint: expect.stringContaining('owner'),
      })
    } finally {
      await db.environment.admin.query(`alter table artifact_refs owner to ${db.owner}; drop role ${other}`)
    }
  })

  test.each([
    ['a unique constraint', 'add constraint one_each unique (tenant_id, r2_key)'],
    ['the columns the other way round', 'add constraint one_each unique (r2_key, tenant_id)'],
    ['the key alone', 'add constraint one_each unique (r2_key)'],
  ])(
    'that says "one artifact per object" by %s holds many of one object all the same',
    async (_, constraint) => {
      await db.pool.query('drop index artifact_refs_tenant_key')
      await db.pool.query(`alter table artifact_refs ${constraint}`)
      await db.migrate()
      await db.environment.worker.query(
        `insert into artifact_refs (tenant_id, kind, r2_key) values ($1, 'k', 'one'), ($1, 'k', 'one')`,
        [tenants.a],
      )
    },
  )

  test('keeps unique indexes that say something else', async () => {
    await db.pool.query('create unique index by_hash on artifact_refs (tenant_id, sha256, r2_key)')
    await db.pool.query('create unique index by_name on artifact_refs (lower(r2_key), tenant_id)')
    await db.migrate()
    const indexes = await column(
      db.pool,
      `select indexname::text from pg_indexes where schemaname = 'lighter' and tablename = 'loose_artifacts'`,
    )
    expect(indexes).toEqual(expect.arrayContaining(['by_hash', 'by_name', 'loose_artifacts_object']))
    expect(indexes).not.toContain('artifact_refs_tenant_key')
  })

  test('without row-level security goes on for those who had rights on it, but for the browser', async () => {
    const backEnd = uniqueRole('Back-End')
    await db.environment.admin.query(`create role "${backEnd}"`)
    try {
      await db.pool.query(`alter table artifact_refs disable row level security;
        grant select, insert on artifact_refs to "${backEnd}"; grant select on artifact_refs to public`)
      await db.migrate()
      const seen = await asRole(db.environment.admin, backEnd, async app => {
        await app.query(`insert into artifact_refs (tenant_id, kind, r2_key) values ($1, 'k', 'x')`, [
          tenants.a,
        ])
        return column(app, 'select r2_key from artifact_refs')
      })
      expect(seen).toEqual(['x'])
      for (const role of ['anon', 'authenticated']) {
        const attempt = asRole(db.environment.admin, role, browser =>
          browser.query('select from artifact_refs'),
        )
        expect((await errorOf(attempt)).code).toBe('42501')
      }
      const forTenant = asRole(db.environment.admin, 'lighter_tenant', request =>
        column(request, 'select id from artifact_refs'),
      )
      expect(await forTenant).toEqual([])
    } finally {
      await db.environment.admin.query(`drop owned by "${backEnd}"; drop role "${backEnd}"`)
    }
  })

  test('without a default for created_at gets one', async () => {
    await db.pool.query('alter table artifact_refs alter created_at drop default')
    await db.migrate()
    const { rows } = await db.environment.worker.query(
      `insert into artifact_refs (tenant_id, kind, r2_key) values ($1, 'k', 'x') returning created_at is not null as dated`,
      [tenants.a],
    )
    expect(rows).toEqual([{ dated: true }])
  })

  test('with default values of the application has them for what is inserted by its name, too', async () => {
    await db.pool.query(`
      create function next_key() returns text language sql return 'made/' || gen_random_uuid();
      alter table artifact_refs alter tenant_id set default nullif(current_setting('app.tenant', true), '')::uuid,
        alter kind set default 'attachment', alter r2_key set default next_key(), alter id drop default`)
    await db.migrate()
    const client = await connect(db.url)
    try {
      await client.query(`set app.tenant = '${tenants.a}'`)
      const { rows } = await client.query(
        'insert into artifact_refs (size_bytes) values (1) returning tenant_id, kind, r2_key, id is not null as identified',
      )
      expect(rows).toEqual([
        {
          tenant_id: tenants.a,
          kind: 'attachment',
          r2_key: expect.stringMatching(/^made\//),
          identified: true,
        },
      ])
      // As it is with the next migration.
      await client.query('alter table lighter.loose_artifacts alter kind drop default')
      await client.query(`update lighter.schema_migrations set checksum = 'old' where name = 'grants.sql'`)
      await db.migrate()
      expect((await errorOf(client.query('insert into artifact_refs (size_bytes) values (1)'))).code).toBe(
        '23502',
      )
    } finally {
      await client.end()
    }
  })

  /** What a migration warns of. */
  const warningsOf = async () => {
    const client = await connect(db.environment.urls.admin)
    try {
      const warnings: string[] = []
      client.on('notice', notice => warnings.push(notice.message ?? ''))
      await client.query(`set role ${db.owner}`)
      await migrate(client)
      return warnings
    } finally {
      await client.end()
    }
  }

  test('with a policy for every role is adopted with a warning that names it', async () => {
    await db.pool.query('create policy "full access" on artifact_refs using (true)')
    expect(await warningsOf()).toEqual([expect.stringContaining('"full access"')])
  })

  test('with columns of the application is adopted with a warning that names them', async () => {
    await db.pool.query(
      `alter table artifact_refs add column label text default 'mine', add column "Shelf" int, add column expires_at timestamptz`,
    )
    await db.pool.query(
      `insert into artifact_refs (tenant_id, kind, r2_key, label) values ($1, 'k', 'x', 'old')`,
      [tenants.a],
    )
    expect(await warningsOf()).toEqual([expect.stringMatching(/columns .*: label, "Shelf"$/)])
    // They stay where they are, and what is stored from now on has their defaults.
    await db.pool.query(`insert into artifact_refs (tenant_id, kind, r2_key) values ($1, 'k', 'y')`, [
      tenants.a,
    ])
    expect(
      await column(db.pool, `select r2_key || ' ' || label from lighter.loose_artifacts order by r2_key`),
    ).toEqual(['x old', 'y mine'])
    const { fields } = await db.pool.query('select * from artifact_refs')
    expect(fields.map(field => field.name)).not.toContain('label')
  })

  test('on which views, functions or foreign keys depend is refused, naming the statements that make it possible', async () => {
    await db.pool.query(`
      create view recent as select id, r2_key from artifact_refs where created_at > now() - interval '1 day';
      create function newest() returns setof artifact_refs language sql as 'select * from artifact_refs order by created_at desc limit 1';
      create function kind_of(a artifact_refs[]) returns text language sql as 'select a[1].kind';
      create schema "Reports";
      create materialized view "Reports"."by kind" as select kind, count(*) from artifact_refs group by kind;
      create table citations (artifact uuid references artifact_refs, page int);
      create table "Notes" (id uuid, about uuid, constraint "about what" foreign key (about) references artifact_refs);
      alter table artifact_refs add column parent uuid references artifact_refs`)
    const statements = [
      'alter table public."Notes" drop constraint "about what";',
      'alter table public.citations drop constraint citations_artifact_fkey;',
      'drop function public.kind_of(public.artifact_refs[]);',
      'drop function public.newest();',
      'drop materialized view "Reports"."by kind";',
      'drop view public.recent;',
    ]
    const before = await state()
    const error = await errorOf(db.migrate())
    expect(error).toMatchObject({
      code: 'migration_failed',
      message: expect.stringContaining('views, functions or foreign keys depend on public.artifact_refs'),
    })
    const [, named = ''] = error.hint?.split(/: (?=alter|drop)/) ?? []
    expect(
      named
        .match(/[^;]+;/g)
        ?.map(statement => statement.trim())
        .sort(),
    ).toEqual(statements)
    expect(await state()).toEqual(before)
    expect(
      await value(db.pool, `select relkind::text from pg_class where oid = 'artifact_refs'::regclass`),
    ).toBe('r')

    await db.pool.query(named)
    await db.migrate()
    // The views can be made again, and the table may refer to itself.
    await db.pool.query('create view recent as select id, r2_key from artifact_refs')
    expect(
      await column(
        db.pool,
        `select confrelid::regclass::text from pg_constraint where conrelid = 'lighter.loose_artifacts'::regclass and contype = 'f'`,
      ),
    ).toEqual(['lighter.loose_artifacts'])
  })

  test('that a publication has stays in it, under its new name', async () => {
    await db.pool.query('create publication changes for table artifact_refs')
    await db.migrate()
    expect(
      await column(
        db.pool,
        `select schemaname || '.' || tablename from pg_publication_tables where pubname = 'changes'`,
      ),
    ).toEqual(['lighter.loose_artifacts'])
    await db.environment.worker.query(
      `insert into artifact_refs (tenant_id, kind, r2_key) values ($1, 'k', 'x')`,
      [tenants.a],
    )
  })
})

describe.each([
  ['tenant_id in the messages', true],
  ['tenant_id in the conversations only', false],
])('an application with %s', (_, tenantColumn) => {
  test('has its messages offloaded, and reads back what it wrote', async () => {
    const db = await openOwnedDatabase()
    try {
      await db.pool.query(originalTables({ tenantColumn }))
      await db.pool.query(originalArtifactRefs)
      const conversation = await value<string>(
        db.pool,
        'insert into conversations (tenant_id) values ($1) returning id',
        [tenants.a],
      )
      const write = async (metadata: string) => {
        if (!tenantColumn) return insertMessage(db.environment, conversation, metadata, db.pool)
        return value<string>(
          db.pool,
          `insert into conversation_messages (conversation_id, tenant_id, role, content, metadata)
           values ($1, $2, 'assistant', '', $3) returning id`,
          [conversation, tenants.a, metadata],
        )
      }
      const early = await write('{"tool_interactions": [{"early": true}]}')
      await db.migrate()
      await db.pool.query(`select lighter.attach('public.conversation_messages')`)
      expect(await value(db.pool, 'select cardinality(parent_relations) = 0 from lighter.sources')).toBe(
        tenantColumn,
      )

      const daemon = await startDaemon(db.environment)
      try {
        const heavy = `{"model": "m", "tool_interactions": [{"n": 12345678901234567890.5}], "trace": "${'é'.repeat(5000)}"}`
        const id = await write(heavy)
        await drained(db.environment)
        const left = JSON.parse((await rawMetadata(db.environment, id)) ?? '')
        expect(left).toEqual({
          model: 'm',
          tool_interactions_ref: expect.any(String),
          tool_interactions_count: 1,
          artifact_metadata_ref: expect.any(String),
          artifact_metadata_kind: 'assistant_message_metadata',
        })
        expect(await hydrated(db.environment, id)).toBe(await asJsonbText(db.environment, heavy))
        const { rows } = await db.pool.query(
          'select tenant_id, entity_type, entity_id from artifact_refs where row_id = $1',
          [id],
        )
        expect(rows).toEqual(
          Array.from({ length: 2 }, () => ({
            tenant_id: tenants.a,
            entity_type: 'conversation',
            entity_id: conversation,
          })),
        )
        // What was there before is left alone until it is asked for.
        expect(await rawMetadata(db.environment, early)).toContain('"tool_interactions": [')
        await db.pool.query(`select lighter.requeue('conversation_messages', array[$1])`, [early])
        await drained(db.environment)
        expect(await rawMetadata(db.environment, early)).toContain('"tool_interactions_ref"')
      } finally {
        await daemon.stop()
      }
    } finally {
      await db.close()
    }
  })
})
