// Mode whole: the column is null and the artifact's id stands beside it. What the application writes always wins, and an id
// that is not the row's own is never read.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import type { SignalPoint } from '../../src/offload/signals.ts'
import { createSignals, drained, startDaemon, until, useFreshEnvironment } from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { noise, settings } from '../support/killed.ts'
import { spawnDaemon } from '../support/spawn-daemon.ts'
import { errorOf, value } from '../support/sql.ts'
import { age, releasedTwice, runNow } from '../support/sweep.ts'
import {
  attachValueTable,
  combinations,
  heavyValue,
  hydratedValue,
  insertValue,
  newValueTable,
  parameterSql,
  rawValue,
  restoreTable,
  updateValue,
  type ValueTable,
} from '../support/value-tables.ts'

const environment = useFreshEnvironment()
const { signal, holdAt } = createSignals()
let daemon: Daemon | null = null
beforeEach(async () => {
  daemon = await startDaemon(environment, { signal })
})
afterEach(async () => {
  await daemon?.stop()
  daemon = null
})

const types = combinations.filter(([, mode]) => mode === 'whole').map(([type]) => type)

/** A table with one row that is offloaded. */
async function offloadedRow(type: (typeof types)[number] = 'text') {
  const table = await newValueTable(environment, type, 'whole')
  const tenantId = randomUUID()
  const id = await insertValue(environment, table, heavyValue(type), tenantId)
  await drained(environment)
  const { pointer } = await rawValue(environment, table, id)
  if (pointer === null) throw new Error('the row was not offloaded')
  return { table, id, tenantId, pointer }
}

const deleted = (pointer: string) =>
  value<boolean>(environment.admin, 'select deleted_at is not null from artifact_refs where id = $1', [
    pointer,
  ])

describe.each(types)('an offloaded row of type %s', type => {
  test('stays so when it is saved again, with all its columns or without the pointer', async () => {
    const { table, id, pointer } = await offloadedRow(type)
    const { app } = environment
    await app.query(
      `update public.${table.name} t set (tenant_id, note, value, value_artifact_id)
         = (select tenant_id, 'saved', value, value_artifact_id from public.${table.name} where id = t.id) where id = $1`,
      [id],
    )
    await app.query(`update public.${table.name} set note = 'again', value = null where id = $1`, [id])
    await app.query(
      `insert into public.${table.name} (id, tenant_id, value) values ($1, gen_random_uuid(), null)
         on conflict (id) do update set note = 'upserted', value = excluded.value`,
      [id],
    )
    await drained(environment)
    expect(await rawValue(environment, table, id)).toEqual({ bytes: null, pointer })
    expect(await hydratedValue(environment, table, id)).toEqual(heavyValue(type))
  })

  test('loses the pointer in the statement that writes a value: update, upsert, insert of a whole row', async () => {
    const { table, id, pointer } = await offloadedRow(type)
    const { app } = environment
    const light = heavyValue(type, 'light', 40)
    await updateValue(environment, table, id, light)
    expect(await rawValue(environment, table, id)).toEqual({ bytes: light, pointer: null })
    // A null after that is a null.
    await updateValue(environment, table, id, null)
    expect(await hydratedValue(environment, table, id)).toBe(null)
    // With the id that an ORM still has in hand.
    const { rows } = await app.query(
      `update public.${table.name} set value = ${parameterSql(type, '$2')}, value_artifact_id = $3 where id = $1
       returning value_artifact_id as id`,
      [id, heavyValue(type, 'with the id'), pointer],
    )
    expect(rows).toEqual([{ id: null }])
    await app.query(
      `insert into public.${table.name} (id, tenant_id, value, value_artifact_id) values ($1, gen_random_uuid(), ${parameterSql(type, '$2')}, $3)
         on conflict (id) do update set value = excluded.value, value_artifact_id = excluded.value_artifact_id`,
      [id, heavyValue(type, 'upserted'), pointer],
    )
    expect((await rawValue(environment, table, id)).pointer).toBe(null)
    const { rows: inserted } = await app.query<{ id: string }>(
      `insert into public.${table.name} (tenant_id, value, value_artifact_id) values (gen_random_uuid(), ${parameterSql(type, '$1')}, $2) returning id::text`,
      [light, pointer],
    )
    expect(await rawValue(environment, table, inserted[0]?.id ?? '')).toEqual({ bytes: light, pointer: null })
    await drained(environment)
    expect(await hydratedValue(environment, table, id)).toEqual(heavyValue(type, 'upserted'))
  })

  test('is cleared when the application takes the pointer away, and its artifact is released', async () => {
    const { table, id, pointer } = await offloadedRow(type)
    await environment.app.query(`update public.${table.name} set value_artifact_id = null where id = $1`, [
      id,
    ])
    expect(await hydratedValue(environment, table, id)).toBe(null)
    expect(await releasedTwice(environment)).not.toContainEqual(expect.any(Error))
    expect(await deleted(pointer)).toBe(true)
  })

  test('keeps its artifact as long as any row, or a copy of it, has the id', async () => {
    const { table, id, pointer } = await offloadedRow(type)
    const { app } = environment
    const { rows } = await app.query<{ id: string }>(
      `insert into public.${table.name} (tenant_id, value, value_artifact_id)
       select tenant_id, value, value_artifact_id from public.${table.name} returning id::text`,
    )
    const copy = rows[0]?.id ?? ''
    await app.query(`delete from public.${table.name} where id = $1`, [id])
    await releasedTwice(environment)
    expect(await hydratedValue(environment, table, copy)).toEqual(heavyValue(type))
    await app.query(`delete from public.${table.name}`)
    await releasedTwice(environment)
    expect(await deleted(pointer)).toBe(true)
  })

  test('after restore and detach the table is as it was before attach', async () => {
    const table = await newValueTable(environment, type, 'whole', { attached: false })
    const bytes = [heavyValue(type), heavyValue(type, 'light', 30), null, heavyValue(type, 'long', 300_000)]
    for (const each of bytes) await insertValue(environment, table, each)
    const before = await dump(table)
    const attached = await attachValueTable(environment, table)
    await environment.admin.query(
      `insert into lighter.waiting (source_id, row_id) select $1, id::text from public.${table.name}`,
      [attached.sourceId],
    )
    await drained(environment)
    expect(await dump(table)).not.toEqual(before)
    await restoreTable(environment, attached, { paused: true })
    expect(await value(environment.admin, `select lighter.detach('public.${table.name}', 'value')`)).toBe(
      true,
    )
    expect(await dump(table)).toEqual(before)
  })
})

/** Every row as text, its columns, triggers, policies and rights. */
async function dump({ name }: ValueTable): Promise<unknown> {
  const { rows } = await environment.admin.query(
    `select (select json_agg(t::text order by id) from public.${name} t) as rows,
            (select json_agg(array[attname, format_type(atttypid, atttypmod), attnotnull::text] order by attnum)
               from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped) as columns,
            (select count(*) from pg_trigger where tgrelid = c.oid) as triggers,
            (select count(*) from pg_policy where polrelid = c.oid) as policies,
            (select count(*) from pg_proc where pronamespace = 'lighter'::regnamespace and proname ~ '^(clear|heavy|enqueue)_[2-9]') as functions, c.relacl::text
       from pg_class c where c.oid = 'public.${name}'::regclass`,
  )
  return rows
}

describe('while a daemon works on a row', () => {
  const changes: [string, string, (before: Buffer) => Buffer | null][] = [
    ['another heavy value', `value = repeat('other ', 2000)`, () => Buffer.from('other '.repeat(2000))],
    ['a light value', `value = 'light'`, () => Buffer.from('light')],
    ['null', 'value = null', () => null],
    ['another column', `note = 'noted'`, before => before],
    ['a pointer of its own', 'value = null, value_artifact_id = gen_random_uuid()', () => null],
  ]
  describe.each(['after-plan', 'before-commit'] as SignalPoint[])('%s', point => {
    test.each(changes)(
      'the application writes %s, and that is what the row has',
      async (_, set, expected) => {
        const table = await newValueTable(environment, 'text', 'whole')
        const held = holdAt(point)
        const id = await insertValue(environment, table, heavyValue('text'))
        await held.reached
        await environment.app.query(`update public.${table.name} set ${set} where id = $1`, [id])
        const { pointer } = await rawValue(environment, table, id)
        held.release()
        await drained(environment)
        if (set.includes('gen_random_uuid')) {
          expect(await rawValue(environment, table, id)).toEqual({ bytes: null, pointer })
          expect(await errorOf(hydratedValue(environment, table, id))).toMatchObject({
            code: 'artifact_not_found',
          })
        } else expect(await hydratedValue(environment, table, id)).toEqual(expected(heavyValue('text')))
      },
    )

    test('the row is deleted, and nothing is left of it', async () => {
      const table = await newValueTable(environment, 'text', 'whole')
      const held = holdAt(point)
      const id = await insertValue(environment, table, heavyValue('text'))
      await held.reached
      await environment.app.query(`delete from public.${table.name} where id = $1`, [id])
      held.release()
      await drained(environment)
      expect(
        await value(environment.admin, 'select count(*)::int from artifact_refs where source_id = $1', [
          table.sourceId,
        ]),
      ).toBe(0)
    })
  })
})

describe('an id in the pointer column', () => {
  test('that names nothing, another tenant’s artifact or that of another column is an error, and reveals nothing', async () => {
    const { table, tenantId, pointer } = await offloadedRow()
    const other = await newValueTable(environment, 'text', 'whole')
    const foreign = await insertValue(environment, other, heavyValue('text', 'secret'), tenantId)
    await drained(environment)
    const ofOther = (await rawValue(environment, other, foreign)).pointer
    const insert = async (tenant: string, id: string | null) => {
      const { rows } = await environment.app.query<{ id: string }>(
        `insert into public.${table.name} (tenant_id, value_artifact_id) values ($1, $2) returning id::text`,
        [tenant, id],
      )
      return rows[0]?.id ?? ''
    }
    for (const id of [
      await insert(tenantId, randomUUID()),
      await insert(randomUUID(), pointer),
      await insert(tenantId, ofOther),
    ]) {
      const error = await errorOf(hydratedValue(environment, table, id))
      expect(error).toMatchObject({ code: 'artifact_not_found' })
      expect(error.message).not.toContain('secret')
    }
    // A restore says so, leaves them as they are, and puts back all others.
    const before = await value(
      environment.admin,
      `select count(*)::int from public.${table.name} where value is null`,
    )
    const failures = await restoreTable(environment, table, { failures: 3 })
    expect(new Set(failures.map(failure => failure.code))).toEqual(new Set(['artifact_not_found']))
    expect(
      await value(environment.admin, `select count(*)::int from public.${table.name} where value is null`),
    ).toBe(Number(before) - 1)
    // With ids in it the column stays.
    await environment.admin.query(`select lighter.detach('public.${table.name}', 'value')`)
    expect(
      await value(environment.admin, `select count(value_artifact_id)::int from public.${table.name}`),
    ).toBe(3)
  })

  test('of another tenant is a moved row for the release sweep, and keeps that tenant’s artifact for it alone', async () => {
    const { table, id, pointer } = await offloadedRow()
    await environment.admin.query(
      `update public.${table.name} set tenant_id = gen_random_uuid() where id = $1`,
      [id],
    )
    await age(environment, '2 hours')
    expect((await runNow(environment, 'release')).counts).toMatchObject({ moved: 1, released: 0 })
    expect(
      await value(environment.admin, 'select artifact_id from lighter.moved_row_records where row_id = $1', [
        id,
      ]),
    ).toBe(pointer)
    expect(await errorOf(hydratedValue(environment, table, id))).toMatchObject({ code: 'artifact_not_found' })
  })

  test('beside a value, where the trigger did not fire, is not read: the value is newer', async () => {
    const { table, id, pointer } = await offloadedRow()
    const client = await environment.admin.connect()
    try {
      await client.query('set session_replication_role = replica')
      await client.query(`update public.${table.name} set value = 'newer' where id = $1`, [id])
    } finally {
      await client.query('reset session_replication_role')
      client.release()
    }
    expect(await rawValue(environment, table, id)).toEqual({ bytes: Buffer.from('newer'), pointer })
    expect(await hydratedValue(environment, table, id)).toEqual(Buffer.from('newer'))
    await restoreTable(environment, table)
    expect((await rawValue(environment, table, id)).bytes).toEqual(Buffer.from('newer'))
    await updateValue(environment, table, id, heavyValue('text', 'heavy again'))
    await drained(environment)
    expect((await rawValue(environment, table, id)).pointer).not.toBe(pointer)
    expect(await hydratedValue(environment, table, id)).toEqual(heavyValue('text', 'heavy again'))
  })
})

describe('the pointer column', () => {
  test('is renamed: rows are read, cleared, offloaded and released as before', async () => {
    const { table, id, pointer } = await offloadedRow()
    const { admin, app } = environment
    const warm = await app.connect()
    try {
      // A session that has planned the trigger under the old name.
      await warm.query(
        `insert into public.${table.name} (tenant_id, value, value_artifact_id) values (gen_random_uuid(), 'x', gen_random_uuid())`,
      )
      await admin.query(`alter table public.${table.name} rename column value_artifact_id to stored_as`)
      await warm.query(
        `insert into public.${table.name} (tenant_id, value, stored_as) values (gen_random_uuid(), 'x', gen_random_uuid())`,
      )
    } finally {
      warm.release()
    }
    expect(
      await value(
        admin,
        `select count(*)::int from public.${table.name} where value = 'x' and stored_as is not null`,
      ),
    ).toBe(0)
    expect(await hydratedValue(environment, table, id)).toEqual(heavyValue('text'))
    await releasedTwice(environment)
    expect(await deleted(pointer)).toBe(false)
    await restoreTable(environment, table, { paused: true })
    expect(await value(admin, `select value from public.${table.name} where id = $1`, [id])).toBe(
      heavyValue('text').toString(),
    )
    await admin.query(`select lighter.detach('public.${table.name}', 'value')`)
    expect(
      await value(
        admin,
        `select count(*)::int from pg_attribute where attrelid = 'public.${table.name}'::regclass and attname = 'stored_as'`,
      ),
    ).toBe(0)
  })

  test('is dropped: nothing is offloaded, nothing is released, writes go on, and doctor’s view names it', async () => {
    const { table, pointer } = await offloadedRow()
    const { admin } = environment
    await admin.query(`alter table public.${table.name} drop column value_artifact_id cascade`)
    const id = await insertValue(environment, table, heavyValue('text', 'stays'))
    expect(await value(admin, 'select part || name from lighter.missing_parts where stops_offload')).toBe(
      'pointer columnvalue_artifact_id',
    )
    expect(await releasedTwice(environment)).toContainEqual(
      expect.objectContaining({ code: 'rows_out_of_sight' }),
    )
    expect(await deleted(pointer)).toBe(false)
    expect(await value(admin, `select value from public.${table.name} where id = $1`, [id])).toBe(
      heavyValue('text', 'stays').toString(),
    )
    expect(await value(admin, `select lighter.forget_missing($1)`, [table.sourceId])).toBe(1)
    await releasedTwice(environment)
    expect(await deleted(pointer)).toBe(true)
  })

  test('gets another type, as does the column: rows stay inline, nothing is released', async () => {
    const { table, pointer } = await offloadedRow()
    const { admin } = environment
    await admin.query(`
      drop trigger lighter_clear_${table.sourceId} on public.${table.name};
      drop trigger lighter_clear_null_${table.sourceId} on public.${table.name};
      drop trigger lighter_enqueue_${table.sourceId} on public.${table.name};
      alter table public.${table.name} alter column value_artifact_id type text`)
    expect(await value(admin, 'select reason from lighter.missing_parts')).toBe(
      'the column is of type text now',
    )
    await admin.query(`
      alter table public.${table.name} alter column value_artifact_id type uuid using value_artifact_id::uuid, alter column value type bytea using value::bytea`)
    expect(await value(admin, 'select reason from lighter.missing_parts')).toBe(
      'the column is of type bytea now',
    )
    await admin.query(
      `insert into lighter.waiting (source_id, row_id) select $1, id::text from public.${table.name}`,
      [table.sourceId],
    )
    expect(await releasedTwice(environment)).toContainEqual(
      expect.objectContaining({ code: 'rows_out_of_sight' }),
    )
    expect(await deleted(pointer)).toBe(false)
  })

  test('is kept from another mode, and from another column, as long as rows have ids in it', async () => {
    const { table } = await offloadedRow()
    const { admin } = environment
    await admin.query(`select lighter.detach('public.${table.name}', 'value')`)
    for (const args of [
      `mode => 'stub'`,
      `mode => 'whole', pointer_column => 'other_id', create_pointer_column => true`,
    ]) {
      expect(
        await errorOf(admin.query(`select lighter.attach('public.${table.name}', 'value', ${args})`)),
      ).toMatchObject({ code: '55006' })
    }
    await admin.query(
      `select lighter.attach('public.${table.name}', 'value', pointer_column => 'value_artifact_id')`,
    )
    expect(await value(admin, `select mode from lighter.sources where json_column = 'value'`)).toBe('whole')
  })
})

describe('a daemon that is killed', () => {
  const points: SignalPoint[] = [
    'after-claim',
    'after-plan',
    'after-register',
    'before-stream',
    'mid-multipart',
    'before-complete',
    'after-upload',
    'before-commit',
    'after-commit',
  ]
  test.each(points)('%s: every row reads as it was, and the next daemon finishes', async point => {
    await daemon?.stop()
    const table = await newValueTable(environment, 'bytea', 'whole')
    const written = new Map<string, Buffer>()
    for (const bytes of [noise(12_000), noise(40_000), noise(16 * 1024 * 1024)].map(text =>
      Buffer.from(text, 'base64'),
    )) {
      written.set(await insertValue(environment, table, bytes), bytes)
    }
    const killed = await spawnDaemon(environment, { env: settings, killAt: point })
    expect(await killed.ended).toEqual({ code: null, signal: 'SIGKILL' })
    expect((await bucketMismatches(environment)).unregistered).toEqual([])
    for (const [id, bytes] of written)
      expect((await hydratedValue(environment, table, id))?.equals(bytes)).toBe(true)
    daemon = await startDaemon(environment, { env: settings })
    await drained(environment)
    for (const [id, bytes] of written) {
      expect((await rawValue(environment, table, id)).bytes?.length ?? null).toBe(null)
      expect((await hydratedValue(environment, table, id))?.equals(bytes)).toBe(true)
    }
    expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
    expect(await strayArtifacts(environment)).toEqual([])
  })
})

test('a value of 60 MB is streamed, read, restored', async () => {
  const table = await newValueTable(environment, 'bytea', 'whole')
  const bytes = Buffer.from(noise(80 * 1024 * 1024), 'base64')
  const id = await insertValue(environment, table, bytes)
  await drained(environment, 60_000)
  expect((await rawValue(environment, table, id)).bytes?.length ?? null).toBe(null)
  expect((await hydratedValue(environment, table, id))?.equals(bytes)).toBe(true)
  await restoreTable(environment, table)
  expect((await rawValue(environment, table, id)).bytes?.equals(bytes)).toBe(true)
})

test('the original’s own example: a transcript and the artifact’s id in the columns that are there', async () => {
  const { admin, app } = environment
  await admin.query(`
    create table public.talks (id uuid primary key default gen_random_uuid(), tenant_id uuid not null, transcript_json jsonb, artifact_id uuid);
    grant all on public.talks to public;
    select lighter.attach('public.talks', 'transcript_json', mode => 'whole', pointer_column => 'artifact_id', phase2_kind => 'chat_transcript')`)
  await app.query(
    `insert into public.talks (tenant_id, transcript_json) values (gen_random_uuid(), jsonb_build_array(repeat('word ', 4000)))`,
  )
  await until(
    async () =>
      (await value(
        admin,
        'select count(*)::int from public.talks where transcript_json is null and artifact_id is not null',
      )) === 1,
    'the transcript left',
  )
  expect(
    await value(admin, `select kind from artifact_refs where id = (select artifact_id from public.talks)`),
  ).toBe('chat_transcript')
  // It was there before attach, and stays after detach.
  await admin.query(
    `update public.talks set artifact_id = null; select lighter.detach('public.talks', 'transcript_json')`,
  )
  expect(
    await value(
      admin,
      `select count(*)::int from pg_attribute where attrelid = 'public.talks'::regclass and attname = 'artifact_id'`,
    ),
  ).toBe(1)
})

test('what docs/sql.md says of updates that work out the new value from the old', async () => {
  const { table, id, pointer } = await offloadedRow('text')
  const { app, admin } = environment
  for (const set of [`value = value || ' more'`, `value = replace(value, 'n', 'm')`, 'value = null'])
    await app.query(`update public.${table.name} set ${set} where id = $1`, [id])
  expect(await rawValue(environment, table, id)).toEqual({ bytes: null, pointer })
  const stubs = await newValueTable(environment, 'text', 'stub')
  const other = await insertValue(environment, stubs, heavyValue('text'))
  await drained(environment)
  const kept = (await rawValue(environment, stubs, other)).pointer ?? ''
  await app.query(`update public.${stubs.name} set value = value || ' more' where id = $1`, [other])
  await releasedTwice(environment)
  expect(await deleted(kept)).toBe(false)
  expect((await hydratedValue(environment, stubs, other))?.toString()).toBe(
    `{"artifact_ref": "${kept}"} more`,
  )
  await app.query(`update public.${stubs.name} set value = replace(value, 'artifact', 'A') where id = $1`, [
    other,
  ])
  expect(await value(admin, `select value ~ 'A_ref' from public.${stubs.name}`)).toBe(true)
})
