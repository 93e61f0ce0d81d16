// What attach says of a when_sql, and what becomes of it when columns change under it.
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { beforeEach, describe, expect, test } from 'vitest'
import { workByHand } from '../support/by-hand.ts'
import { useEnvironment } from '../support/environment.ts'
import { emptyQueue } from '../support/queue.ts'
import { column, errorOf, uniqueRole, value } from '../support/sql.ts'
import { finished, whenTables } from '../support/when-tables.ts'

const literal = pg.escapeLiteral

const environment = await useEnvironment()
const { admin } = environment
const { work } = workByHand(environment)
const { attachTable, newTable, insert, set, isInline, refusals } = whenTables(environment)

beforeEach(async () => {
  await emptyQueue(environment)
  await admin.query('delete from lighter.flushes')
})

describe('attach refuses', () => {
  test.each([
    ['status = ', /syntax error/],
    ['n', /must be type boolean, not type integer/],
    ['random() < 0.5', /random\(\), which is volatile/],
    ['exists (select from pg_class)', /cannot use subquery in when_sql/],
    ['count(*) > 1', /aggregate functions are not allowed in when_sql/],
    ['row_number() over () > 1', /window functions are not allowed in when_sql/],
    ['other.n = 1', /missing FROM-clause entry/],
    ['nothing = 1', /column "nothing" does not exist/],
    ['length(payload) > 5', /payload, which changes when a payload leaves/],
    [`'x' = 'y') , add column z int, add check (true`, /syntax error|one expression/],
    ['true); drop table lighter.sources; select (true', /./],
  ])('%s', async (expression, reason) => {
    const { name } = await newTable(null)
    await insert({ name })
    const found = await refusals(name, `when_sql => ${literal(expression)}`)
    expect(found).toHaveLength(1)
    expect(found[0]).toMatch(reason)
    expect((await errorOf(attachTable(name, `when_sql => ${literal(expression)}`))).message).toBe(found[0])
    expect(
      await value(admin, 'select count(*)::int from lighter.sources where relation = $1::regclass', [name]),
    ).toBe(0)
    expect(await column(admin, `select tgname from pg_trigger where tgrelid = '${name}'::regclass`)).toEqual(
      [],
    )
    expect(await column(admin, `select relname from pg_class where relname ~ 'lighter_when'`)).toEqual([])
  })

  test('the whole row, a generated column of the value, the pointer column', async () => {
    const { name } = await newTable(null)
    await admin.query(
      `alter table ${name} add column size integer generated always as (length(payload)) stored, add column pointer uuid`,
    )
    expect(
      await refusals(name, `when_sql => '${name.slice(7)} is not null', allow_dependents => true`),
    ).toEqual([expect.stringContaining('the whole row')])
    expect(await refusals(name, `when_sql => 'size > 5', allow_dependents => true`)).toEqual([
      expect.stringContaining('generated from payload'),
    ])
    expect(
      await refusals(
        name,
        `when_sql => 'pointer is null', mode => 'whole', pointer_column => 'pointer', allow_dependents => true`,
      ),
    ).toEqual([expect.stringContaining('pointer, which changes when a payload leaves')])
  })

  test('a condition that fails on a row that is there, or is slow', async () => {
    const { name } = await newTable(null)
    await insert({ name }, { n: 0 })
    expect(await refusals(name, `when_sql => '1 / n > 0'`)).toEqual([
      expect.stringContaining('fails on a row'),
    ])
    const slow = `slow_${randomUUID().slice(0, 8)}`
    await admin.query(
      `create function public.${slow}(n integer) returns boolean language plpgsql stable as 'begin perform pg_sleep(0.3); return true; end'`,
    )
    for (let n = 0; n < 30; n++) await insert({ name }, { n, payload: 'x' })
    const began = performance.now()
    expect(await refusals(name, `when_sql => 'public.${slow}(n)'`)).toEqual([
      expect.stringContaining('when_sql is slow: 30'),
    ])
    expect(performance.now() - began).toBeLessThan(6000)
  })

  test('all at once, and leaves what is attached as it is', async () => {
    const table = await newTable(finished)
    const before = await admin.query('select * from lighter.sources where id = $1', [table.sourceId])
    const { message } = await errorOf(
      attachTable(table.name, `when_sql => 'n', trigger => false, mode => 'whole', min_bytes => -1`),
    )
    expect(message).toContain('must be type boolean')
    expect(message).toContain('needs its trigger')
    expect(message).toContain('needs a column for the artifacts')
    expect((await admin.query('select * from lighter.sources where id = $1', [table.sourceId])).rows).toEqual(
      before.rows,
    )
  })

  test('code of a role that is not trusted, unless trust_owner says so', async () => {
    const role = uniqueRole('ops')
    const { name } = await newTable(null)
    await admin.query(`
      create role ${role};
      create schema ${role} authorization ${role};
      set role ${role};
      create table ${role}.calls (n integer);
      create function ${role}.same(a text, b text) returns boolean language plpgsql stable as 'begin return a = b; end';
      create operator ${role}.=== (function = ${role}.same, leftarg = text, rightarg = text);
      reset role`)
    const operator = `when_sql => 'status operator(${role}.===) ''finished'''`
    expect(await refusals(name, operator)).toEqual([expect.stringContaining(`belongs to "${role}"`)])
    const sourceId = await attachTable(name, `${operator}, trust_owner => true`)
    const table = { name, sourceId }
    const [open, done] = [
      await insert(table, { status: 'open' }),
      await insert(table, { status: 'finished' }),
    ]
    await work()
    expect([await isInline(table, open), await isInline(table, done)]).toEqual([true, false])
    // Whoever takes trust_owner back must say another condition.
    expect((await errorOf(attachTable(name, 'trust_owner => false'))).message).toContain(
      `belongs to "${role}"`,
    )
    await attachTable(name, `when_sql => '', trust_owner => false`)
    await admin.query(`drop owned by ${role} cascade; drop role ${role}`)
  })

  test('before any of that code has run', async () => {
    const role = uniqueRole('traps')
    const { name } = await newTable(null)
    await insert({ name })
    await admin.query(`
      create role ${role};
      create schema ${role} authorization ${role};
      set role ${role};
      create function ${role}.trap(n integer) returns boolean language plpgsql immutable as
        'begin raise exception ''it ran as %'', current_user; end';
      reset role`)
    // Of a constant Postgres would work it out as soon as it plans.
    expect(await refusals(name, `when_sql => '${role}.trap(1)'`)).toEqual([
      expect.stringContaining(`belongs to "${role}"`),
    ])
    await admin.query(`drop owned by ${role} cascade; drop role ${role}`)
  })

  test('a function that the daemon may not call', async () => {
    const { name } = await newTable(null)
    const secret = `secret_${randomUUID().slice(0, 8)}`
    await admin.query(`create function public.${secret}(n integer) returns boolean language sql stable as 'select true';
      revoke all on function public.${secret}(integer) from public`)
    expect(await refusals(name, `when_sql => 'public.${secret}(n)'`)).toEqual([
      expect.stringContaining('lighter_daemon may not call'),
    ])
  })
})

describe('attach again', () => {
  test('changes and removes the condition; the trigger fires on the columns that it reads', async () => {
    const table = await newTable(finished)
    const trigger = () =>
      value<string>(
        admin,
        `select pg_get_triggerdef(oid) from pg_trigger where tgrelid = '${table.name}'::regclass`,
      )
    expect(await trigger()).toContain('UPDATE OF payload, status ON')
    const warnings = await column<string>(
      admin,
      `select found from lighter.check_attach('${table.name}', 'payload') where what = 'warning'`,
    )
    expect(warnings).toEqual([expect.stringContaining('refuses to change their types')])
    expect(
      (await errorOf(admin.query(`alter table ${table.name} alter column status type varchar(9)`))).code,
    ).toBe('0A000')
    await attachTable(table.name, `when_sql => 'n > 5'`)
    expect(await trigger()).toContain('UPDATE OF n, payload ON')
    const id = await insert(table, { n: 5, status: 'finished' })
    await work()
    expect(await isInline(table, id)).toBe(true)
    await attachTable(table.name, `when_sql => ''`)
    expect(await trigger()).toContain('UPDATE OF payload ON')
    await set(table, id, 'payload = payload')
    await work()
    expect(await isInline(table, id)).toBe(false)
    expect(await column(admin, `select oid from pg_proc where proname = 'when_${table.sourceId}'`)).toEqual(
      [],
    )
  })

  test.each(['stored', 'virtual'])('a %s generated column fires it by what it is made of', async kind => {
    const { name } = await newTable(null)
    await admin.query(`alter table ${name} add column old boolean generated always as (n > 5) ${kind}`)
    const table = { name, sourceId: await attachTable(name, `when_sql => 'old'`) }
    const id = await insert(table, { n: 1 })
    await work()
    expect(await isInline(table, id)).toBe(true)
    await set(table, id, 'n = 6')
    await work()
    expect(await isInline(table, id)).toBe(false)
  })

  test('detach removes its function', async () => {
    const table = await newTable(finished)
    await admin.query(`select lighter.detach('${table.name}', 'payload')`)
    expect(await column(admin, `select oid from pg_proc where proname = 'when_${table.sourceId}'`)).toEqual(
      [],
    )
  })
})

describe('columns change under it', () => {
  test('a renamed one is followed, also by the name of another that took its place', async () => {
    const table = await newTable(finished)
    await admin.query(
      `alter table ${table.name} rename column status to "the State"; alter table ${table.name} add column status text`,
    )
    const id = await insert(table, { '"the State"': 'open', status: 'finished' })
    await work()
    expect(await isInline(table, id)).toBe(true)
    await set(table, id, `"the State" = 'finished'`)
    expect(await work()).toMatchObject({ offloadedRows: 1 })
    await attachTable(table.name, 'min_bytes => 0')
    expect(await value(admin, 'select when_sql from lighter.sources where id = $1', [table.sourceId])).toBe(
      `("the State" = 'finished'::text)`,
    )
  })

  test('a dropped one stops its table, with the reason, and no other', async () => {
    const [table, other] = [await newTable(finished), await newTable(finished)]
    expect((await errorOf(admin.query(`alter table ${table.name} drop column status`))).message).toContain(
      'cannot drop column status',
    )
    const id = await insert(table, { status: 'finished' })
    await admin.query(`alter table ${table.name} drop column status cascade`)
    const fine = await insert(other, { status: 'finished' })
    await work()
    expect([await isInline(table, id), await isInline(other, fine)]).toEqual([true, false])
    const { rows } = await admin.query('select * from lighter.missing_parts where source_id = $1', [
      table.sourceId,
    ])
    expect(rows).toMatchObject([
      {
        part: 'column of when_sql',
        name: 'status',
        stops_offload: true,
        reason: 'the column does not exist any more',
      },
    ])
    expect((await errorOf(attachTable(table.name, 'min_bytes => 0'))).message).toContain(
      'reads a column that does not exist any more',
    )
    await attachTable(table.name, `when_sql => ''`)
    await work()
    expect(await isInline(table, id)).toBe(false)
  })

  test('without its function nothing leaves', async () => {
    const table = await newTable(finished)
    await admin.query(`drop function lighter.when_${table.sourceId}`)
    const id = await insert(table, { status: 'open' })
    await work()
    expect(await isInline(table, id)).toBe(true)
    expect(
      await column(admin, 'select part from lighter.missing_parts where source_id = $1', [table.sourceId]),
    ).toContain('when_sql')
    await attachTable(table.name, 'min_bytes => 0')
    await set(table, id, `status = 'finished'`)
    await work()
    expect(await isInline(table, id)).toBe(false)
  })
})
