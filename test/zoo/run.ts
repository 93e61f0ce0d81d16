// Runs one shape. The application writes every statement twice: to the attached tables in schema public, and to a twin of
// them in schema twin that pg-lighter does not know. So Postgres itself says what each row must be.
import { createHash, randomUUID } from 'node:crypto'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import pg from 'pg'
import { from as copyFrom } from 'pg-copy-streams'
import { expect } from 'vitest'
import { hydrateMany } from '../../src/artifacts/hydrate.ts'
import { readRows } from '../../src/artifacts/rows.ts'
import { hydrateValues, readValues } from '../../src/artifacts/values.ts'
import { asTenantId } from '../../src/ids.ts'
import { createLighterClient } from '../../src/index.ts'
import { fromSql, ident, tenantSql } from '../../src/source/expressions.ts'
import { pointerSql } from '../../src/source/modes.ts'
import { rowKey } from '../../src/source/row-key.ts'
import { loadSources, type Source } from '../../src/source/sources.ts'
import { lighter, lighterOk } from '../support/black-box.ts'
import { blocksOf, readDoc } from '../support/doc-blocks.ts'
import {
  asJsonbText,
  createEnvironment,
  drained,
  startDaemon,
  type TestEnvironment,
} from '../support/environment.ts'
import { bucketMismatches } from '../support/invariants.ts'
import { column, connect, value } from '../support/sql.ts'
import { age, releasedTwice, runNow } from '../support/sweep.ts'
import type { Application, Shape } from './shape.ts'

/** A value for comparisons: its length, its hash, and how it begins. Null: SQL null. */
type Print = string | null
type Contents = Map<string, Print | Error>

export interface Zoo {
  shape: Shape
  environment: TestEnvironment
  app: Application
  twin: Application
  /** The same write to both. */
  write: (work: (app: Application) => Promise<void>) => Promise<void>
  /** All that is heavy has left. */
  settled: () => Promise<void>
  sources: () => Promise<Source[]>
  source: (table: string, column: string) => Promise<Source>
  close: () => Promise<void>
}

/** Tables with rows, attached as docs/schemas.md says, and a daemon. */
export async function openZoo(shape: Shape): Promise<Zoo & { before: string }> {
  const environment = await createEnvironment()
  const { admin, urls } = environment
  const login = pg.escapeIdentifier(decodeURIComponent(new URL(urls.application).username))
  // Rows leave as soon as they are written. The example's own tables may have the names of the shape's.
  await admin.query(`
    select lighter.set_defaults('0', '0');
    select lighter.detach('public.conversation_messages');
    drop table public.conversation_messages, public.conversations;
    create schema twin;
    set search_path = twin; ${shape.tables};
    set search_path = public; ${shape.tables};
    grant all on all tables in schema public to ${login};
    grant all on all sequences in schema public to ${login};
    reset search_path`)
  const connections = [await connect(urls.application), await connect(urls.admin)] as const
  await connections[0].query('set search_path = public')
  await connections[1].query('set search_path = twin')
  const sources = async () => [...(await loadSources(environment.worker)).values()]
  const source = async (table: string, name: string) => {
    const found = (await sources()).find(s => tableOf(s) === table && s.jsonColumn === name)
    if (found === undefined) throw new Error(`${table}.${name} is not attached, or out of sight`)
    return found
  }
  const app: Application = {
    ...applicationOn(connections[0]),
    read: async (table, name, ...key) => {
      const of = await source(table, name)
      const found = (await readAll(environment, of, [rowKey(key)])).get(rowKey(key))
      if (found instanceof Error) throw found
      return found?.toString('utf8') ?? null
    },
  }
  const twin: Application = {
    ...applicationOn(connections[1]),
    read: async (table, name, ...key) => {
      const { keySql } = await source(table, name)
      return value(
        connections[1],
        `select m.${ident(name)}::text from ${qualified('twin', table)} m where ${keySql} = $1`,
        [rowKey(key)],
      )
    },
  }
  const write = async (work: (app: Application) => Promise<void>) => {
    await work(app)
    await work(twin)
  }
  await write(shape.fill)
  const { prepare, attach } = statementsOf(shape.name)
  for (const sql of prepare) {
    await admin.query(sql)
    await admin.query(sql.replaceAll('public.', 'twin.'))
  }
  const before = await structureOf(environment)
  for (const sql of attach) await admin.query(sql)
  const daemon = await startDaemon(environment)
  return {
    shape,
    environment,
    app,
    twin,
    write,
    settled: () => drained(environment),
    sources,
    source,
    before,
    close: async () => {
      await daemon.stop()
      await Promise.all(connections.map(connection => connection.end()))
      await environment.close()
    },
  }
}

const qualified = (schema: string, table: string) => `${schema}.${ident(table)}`
/** Without schema and quotes. */
const tableOf = ({ tableSql }: Source) => tableSql.replace(/^public\./, '').replaceAll('"', '')
const twinOf = (source: Source) => source.tableSql.replace(/^public\./, 'twin.')

/** The SQL below a heading of docs/schemas.md: what prepares the tables, and what attaches them. */
function statementsOf(heading: string): { prepare: string[]; attach: string[] } {
  const blocks = blocksOf(readDoc('schemas.md')).filter(b => b.heading === heading && b.info === 'sql')
  const attach = blocks.map(b => b.text).filter(text => text.includes('lighter.attach('))
  if (attach.length === 0) throw new Error(`docs/schemas.md attaches nothing under "${heading}"`)
  return { prepare: blocks.map(b => b.text).filter(text => !attach.includes(text)), attach }
}

function applicationOn(client: pg.Client): Pick<Application, 'query' | 'copy'> {
  return {
    query: async <R>(sql: string, values: unknown[] = []) => (await client.query(sql, values)).rows as R[],
    copy: async (sql, lines) => {
      await pipeline(Readable.from(lines.map(line => `${line}\n`)), client.query(copyFrom(sql)))
    },
  }
}

/** What rows hydrate to, by their keys; an error where that failed. Rows without a tenant are not in the answer. */
async function readAll(
  environment: TestEnvironment,
  source: Source,
  keys: string[],
  asTenant?: string,
): Promise<Map<string, Buffer | null | Error>> {
  const { worker, store } = environment
  const other = asTenant === undefined ? {} : { tenantId: asTenantId(asTenant) }
  if (source.mode !== 'document') {
    const rows = await readValues(worker, source, keys)
    const results = await hydrateValues(
      { db: worker, store },
      source,
      [...rows.values()].map(row => ({ ...row, ...other })),
    )
    return new Map([...rows.keys()].map((key, i) => [key, results[i]?.error ?? results[i]?.bytes ?? null]))
  }
  const rows = await readRows(worker, source, keys)
  const results = await hydrateMany(
    { db: worker, store },
    [...rows.values()].map(row => ({ ...row, ...other })),
  )
  // A document that was changed after it left has its keys in another order.
  const texts = await column<string | null>(
    environment.admin,
    'select t::jsonb::text from unnest($1::text[]) with ordinality u(t, n) order by n',
    [results.map(result => result.metadata)],
  )
  return new Map(
    [...rows.keys()].map((key, i) => [
      key,
      results[i]?.error ?? (texts[i] == null ? null : Buffer.from(texts[i])),
    ]),
  )
}

function printOf(bytes: Buffer | null): Print {
  if (bytes === null) return null
  return `${bytes.length} ${createHash('sha256').update(bytes).digest('hex')} ${bytes.toString('latin1', 0, 60)}`
}

const bytesSql = (source: Source) => {
  const name = `m.${ident(source.jsonColumn)}`
  return source.columnType === 'bytea' ? `${name}::bytea` : `convert_to(${name}::text, 'UTF8')`
}

/** What stands in the rows of a table, by their keys. */
async function contentsOf(zoo: Zoo, source: Source, table: string): Promise<Contents> {
  const { rows } = await zoo.environment.admin.query<{ key: string; bytes: Buffer | null }>(
    `select ${source.keySql} as key, ${bytesSql(source)} as bytes from ${table} m`,
  )
  return new Map(rows.map(({ key, bytes }) => [key, printOf(bytes)]))
}

const sorted = (contents: Iterable<readonly [string, unknown]>) =>
  [...contents]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, what]) => [key, what instanceof Error ? what.message : what])

/** SQL: whether row `m` of the twin is heavy, and may leave. */
function isHeavySql({ shape }: Zoo, source: Source): string {
  const name = `m.${ident(source.jsonColumn)}`
  const tenant = shape.tenants[tableOf(source)]
  const field =
    source.mode === 'document' && source.phase1Field !== null
      ? `${name} -> ${pg.escapeLiteral(source.phase1Field)}`
      : 'null::jsonb'
  const length = source.columnType === 'bytea' ? `octet_length(${name})` : `octet_length(${name}::text)`
  return `coalesce((${tenant ?? `''`}) is not null and (${length} > ${source.thresholdBytes} or ${field} not in ('[]', '{}', 'null')), false)`
}

const keysWhere = (zoo: Zoo, source: Source, table: string, condition: string) =>
  column<string>(
    zoo.environment.admin,
    `select ${source.keySql} from ${table} m where ${condition} order by 1`,
  )

/** Every row of every attached column reads as the application last wrote it, and all its other columns are as written. */
export async function expectAsWritten(zoo: Zoo): Promise<void> {
  const { environment } = zoo
  for (const source of await zoo.sources()) {
    const written = await contentsOf(zoo, source, twinOf(source))
    const read = new Map(
      [...(await readAll(environment, source, [...written.keys()]))].map(([key, what]) => [
        key,
        what instanceof Error ? what : printOf(what),
      ]),
    )
    // What has no tenant is not hydrated: it is in its row.
    const inline = await contentsOf(zoo, source, source.tableSql)
    for (const [key, what] of inline) if (!read.has(key)) read.set(key, what)
    expect(sorted(read), `${source.tableSql}.${source.jsonColumn}`).toEqual(sorted(written))
  }
  expect(await dumpOf(zoo, 'public', { light: true })).toEqual(await dumpOf(zoo, 'twin', { light: true }))
}

/** What the product lists and counts is the same as of the twin. */
export async function expectReadsAlike({ shape, app, twin }: Zoo): Promise<void> {
  for (const [what, sql] of Object.entries(shape.reads)) {
    const answer = await app.query(sql)
    expect(answer.length, what).toBeGreaterThan(0)
    expect(answer, what).toEqual(await twin.query(sql))
  }
}

/** Exactly the heavy values have left. */
export async function expectOnlyLightRowsInline(zoo: Zoo): Promise<void> {
  for (const source of await zoo.sources()) {
    const label = `${source.tableSql}.${source.jsonColumn}`
    const heavy = await keysWhere(zoo, source, twinOf(source), isHeavySql(zoo, source))
    const inline = await contentsOf(zoo, source, source.tableSql)
    const written = await contentsOf(zoo, source, twinOf(source))
    const left = [...written].filter(([key, print]) => inline.get(key) !== print).map(([key]) => key)
    expect(left.sort(), label).toEqual(heavy.sort())
    expect(heavy.length, `${label} has heavy rows`).toBeGreaterThan(3)
    expect(heavy.length, `${label} has light rows`).toBeLessThan(written.size)
    expect(await keysWhere(zoo, source, source.tableSql, isHeavySql(zoo, source)), label).toEqual([])
  }
}

/** Versions of the rows, by table and key: what nobody has written stays what it is. */
export async function versionsOf(zoo: Zoo, schema: 'public' | 'twin'): Promise<Map<string, string>> {
  const versions = new Map<string, string>()
  for (const source of await zoo.sources()) {
    const table = schema === 'twin' ? twinOf(source) : source.tableSql
    const { rows } = await zoo.environment.admin.query<{ key: string; version: string }>(
      `select ${source.keySql} as key, concat(m.ctid, ' ', m.xmin) as version from ${table} m`,
    )
    for (const { key, version } of rows) versions.set(`${tableOf(source)} ${key}`, version)
  }
  return versions
}

/** @param before versions in both schemas, before anything was offloaded */
export async function expectLightRowsUntouched(
  zoo: Zoo,
  before: { app: Map<string, string>; twin: Map<string, string> },
): Promise<void> {
  const now = { app: await versionsOf(zoo, 'public'), twin: await versionsOf(zoo, 'twin') }
  const heavy = new Set<string>()
  for (const source of await zoo.sources())
    for (const key of await keysWhere(zoo, source, twinOf(source), isHeavySql(zoo, source)))
      heavy.add(`${tableOf(source)} ${key}`)
  const untouched = [...before.twin]
    .filter(([key, version]) => now.twin.get(key) === version && !heavy.has(key))
    .map(([key]) => key)
  expect(untouched.length, 'light rows that the application left alone').toBeGreaterThan(0)
  expect(untouched.map(key => [key, now.app.get(key)])).toEqual(
    untouched.map(key => [key, before.app.get(key)]),
  )
}

/** Each tenant has its own artifacts, and no other reads them: not by their ids, and not through their rows. */
export async function expectTenantsApart(zoo: Zoo): Promise<void> {
  const { environment, shape } = zoo
  for (const source of await zoo.sources()) {
    const tenant = shape.tenants[tableOf(source)]
    const { rows: artifacts } = await environment.admin.query<{ id: string; key: string; tenantId: string }>(
      'select id, row_id as key, tenant_id as "tenantId" from public.artifact_refs where source_id = $1',
      [source.id],
    )
    expect(artifacts.length).toBeGreaterThan(0)
    const { rows: named } = await environment.admin.query<{ key: string; name: string }>(
      `select ${source.keySql} as key, coalesce((${tenant ?? `''`})::text, 'none') as name from ${twinOf(source)} m`,
    )
    const names = new Map(named.map(row => [row.key, row.name]))
    const pairs = new Set(
      artifacts.flatMap(({ key, tenantId }) => (names.has(key) ? [`${tenantId} ${names.get(key)}`] : [])),
    )
    const ids = new Set(artifacts.map(({ tenantId }) => tenantId))
    // One uuid for each name, and one name for each uuid.
    expect(new Set([...pairs].map(pair => pair.slice(37))).size, [...pairs].join('\n')).toBe(pairs.size)
    expect(new Set([...pairs].map(pair => pair.slice(0, 36))).size, [...pairs].join('\n')).toBe(pairs.size)
    if (tenant != null) expect(pairs.size).toBeGreaterThan(1)

    const readers = [...ids, randomUUID()]
    const { rows: seen } = await environment.admin.query<{ own: number; others: number }>(
      `select count(*) filter (where a.tenant = r.tenant)::int as own, count(*) filter (where a.tenant <> r.tenant)::int as others
         from unnest($1::uuid[], $2::uuid[]) a(id, tenant)
        cross join unnest($3::uuid[]) r(tenant)
        cross join lateral lighter.artifact_get(r.tenant, a.id)`,
      [artifacts.map(a => a.id), artifacts.map(a => a.tenantId), readers],
    )
    expect(seen).toEqual([{ own: artifacts.length, others: 0 }])

    const heavy = new Set(await keysWhere(zoo, source, twinOf(source), isHeavySql(zoo, source)))
    const written = await contentsOf(zoo, source, twinOf(source))
    const owners = new Map([...pairs].map(pair => [pair.slice(37), pair.slice(0, 36)]))
    for (const reader of readers) {
      const foreign = [...heavy].filter(key => owners.get(names.get(key) ?? '') !== reader)
      for (const [key, what] of await readAll(environment, source, foreign, reader))
        if (!(what instanceof Error)) expect(printOf(what), `${key} as ${reader}`).not.toBe(written.get(key))
    }
  }
}

/** What no row points to is deleted, in the bucket too; what a row points to stays and reads. */
export async function expectSweepsSafe(zoo: Zoo): Promise<void> {
  const { environment } = zoo
  const before = await value<number>(environment.admin, 'select count(*)::int from public.artifact_refs')
  const outcomes = await releasedTwice(environment)
  // What somebody has stored by himself is looked into first.
  if (outcomes.some(outcome => 'counts' in outcome && outcome.counts.learned !== undefined))
    outcomes.push(...(await releasedTwice(environment)))
  for (const outcome of outcomes)
    expect(outcome).toMatchObject({ outcome: 'done', counts: { moved: zoo.shape.attack.moved ?? 0 } })
  await age(environment, '8 days')
  for (const name of ['retention', 'compaction', 'orphans', 'verify'] as const)
    expect(await runNow(environment, name), name).toMatchObject({ outcome: 'done' })
  await age(environment, '8 days')
  expect(await runNow(environment, 'orphans')).toMatchObject({ outcome: 'done' })
  const after = 'select count(*)::int from public.artifact_refs where deleted_at is null'
  expect(await value<number>(environment.admin, after)).toBeLessThan(before)
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
  expect(await column(environment.admin, 'select damage from lighter.damaged_artifacts')).toEqual([])
  await expectAsWritten(zoo)
}

/** Detached with pointers in its rows, and attached by the same statements, a table is what it was. */
export async function expectAttachedAgain(zoo: Zoo): Promise<void> {
  const { admin } = zoo.environment
  for (const source of await zoo.sources())
    await admin.query('select lighter.detach($1::regclass, $2)', [source.tableSql, source.jsonColumn])
  for (const sql of statementsOf(zoo.shape.name).attach) await admin.query(sql)
  await expectAsWritten(zoo)
}

/** Runs the commands that docs/schemas.md reads a row with. */
export async function expectCommandReads(zoo: Zoo): Promise<void> {
  const blocks = blocksOf(readDoc('schemas.md')).filter(b => b.heading === zoo.shape.name && b.info === 'sh')
  expect(blocks.length).toBeGreaterThan(0)
  for (const { text } of blocks) {
    const words = [...text.trim().matchAll(/'([^']*)'|(\S+)/g)].map(
      ([, quoted, plain]) => quoted ?? plain ?? '',
    )
    const [program, command, table = '', ...others] = words
    expect([program, command]).toEqual(['lighter', 'hydrate'])
    const columnAt = others.indexOf('--column')
    const of = (await zoo.sources()).find(
      s =>
        `public.${tableOf(s)}` === table.replaceAll('"', '') &&
        (columnAt < 0 || s.jsonColumn === others[columnAt + 1]),
    )
    if (of === undefined) throw new Error(`${text}: ${table} is not attached`)
    const { rows } = await zoo.environment.admin.query<Record<string, string> & { expected: string }>(
      `select m.${ident(of.jsonColumn)}::text as expected, ${of.key.map(({ name }) => `m.${ident(name)}::text as ${ident(name)}`).join(', ')}
         from ${twinOf(of)} m where ${isHeavySql(zoo, of)} order by ${of.keySql} limit 1`,
    )
    const [row] = rows
    if (row === undefined) throw new Error(`${table} has no heavy row`)
    const args = others.map(word =>
      word.replace(/^<(\w+)>$/, (_, name: string) => row[name] ?? `no column ${name}`),
    )
    const printed = await lighterOk(zoo.environment, ['hydrate', table, ...args])
    // JSON is printed as a line, text as it is.
    const end = of.columnType === 'text' ? '' : '\n'
    expect(printOf(Buffer.from(printed)), text).toBe(printOf(Buffer.from(row.expected + end)))
  }
}

/** The library reads every heavy row as its tenant, from what the application's own query returns. */
export async function expectClientReads(zoo: Zoo): Promise<void> {
  const { admin, store } = zoo.environment
  for (const source of await zoo.sources()) {
    const keys = await keysWhere(zoo, source, twinOf(source), isHeavySql(zoo, source))
    const written = await contentsOf(zoo, source, twinOf(source))
    const name = `m.${ident(source.jsonColumn)}`
    const { rows } = await admin.query<{
      key: string
      tenant: string
      value: unknown
      pointer: string | null
    }>(
      `select ${source.keySql} as key, ${tenantSql(source)} as tenant,
              ${source.columnType === 'bytea' ? name : `${name}::text`} as value, ${pointerSql(source)} as pointer
         from ${fromSql(source)} where ${source.keySql} = any ($1)`,
      [keys],
    )
    expect(rows.length).toBe(keys.length)
    for (const [tenantId, ofTenant] of Map.groupBy(rows, row => row.tenant)) {
      const client = createLighterClient({ pool: admin, store, tenantId })
      const hydrated = await client.hydrateMany(ofTenant, {
        column: 'value',
        parse: text => text,
        ...(source.mode === 'document'
          ? { field: source.phase1Field ?? '', stringify: String }
          : { kind: source.phase2Kind }),
        ...(source.mode === 'whole' ? { pointerColumn: 'pointer' } : {}),
      })
      for (const { key, value: read } of hydrated) {
        const bytes = typeof read === 'string' ? Buffer.from(read) : Buffer.from(read as Uint8Array)
        const isDocument = source.mode === 'document'
        const print = printOf(isDocument ? await jsonbBytes(zoo.environment, bytes.toString()) : bytes)
        expect(print, `${source.tableSql}.${source.jsonColumn} ${key}`).toBe(written.get(key))
      }
    }
  }
}

async function jsonbBytes(environment: TestEnvironment, text: string): Promise<Buffer | null> {
  const canonical = await asJsonbText(environment, text)
  return canonical === null ? null : Buffer.from(canonical)
}

/** All rows as texts, in order. Columns that attach has made are left out; `light`: those that it watches, too. */
export async function dumpOf(zoo: Zoo, schema: 'public' | 'twin', { light = false } = {}): Promise<string[]> {
  const { admin } = zoo.environment
  const tables = await column<string>(
    admin,
    `select relname::text from pg_class where relnamespace = 'twin'::regnamespace and relkind in ('r', 'p') and not relispartition order by 1`,
  )
  const watched = new Map((await zoo.sources()).map(s => [`${tableOf(s)}.${s.jsonColumn}`, s.pointerColumn]))
  const lines: string[] = []
  for (const table of tables) {
    const names = await column<string>(
      admin,
      'select attname::text from pg_attribute where attrelid = $1::regclass and attnum > 0 and not attisdropped order by attnum',
      [qualified('twin', table)],
    )
    const pointers = names.flatMap(name => watched.get(`${table}.${name}`) ?? [])
    const shown = light
      ? names.filter(name => !watched.has(`${table}.${name}`) && !pointers.includes(name))
      : names
    lines.push(
      ...(await column<string>(
        admin,
        `select concat($1::text, ' ', left(r, 200), ' ', length(r), ' ', md5(r))
           from (select row(${shown.map(name => `m.${ident(name)}`).join(', ')})::text as r from ${qualified(schema, table)} m) rows order by r collate "C"`,
        [table],
      )),
    )
  }
  return lines
}

/** Columns, triggers, policies, rights, indexes and constraints of the application's tables, and functions of ours. */
function structureOf({ admin }: TestEnvironment): Promise<string> {
  return value<string>(
    admin,
    `select jsonb_pretty(jsonb_build_object(
       'tables', (select jsonb_object_agg(c.relname, jsonb_build_object(
          'rights', c.relacl::text,
          'row security', c.relrowsecurity,
          'columns', (select jsonb_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attacl::text) order by a.attnum)
                        from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
                       where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
          'triggers', (select jsonb_agg(pg_get_triggerdef(t.oid) order by t.tgname) from pg_trigger t where t.tgrelid = c.oid and not t.tgisinternal),
          'policies', (select jsonb_agg(p.polname) from pg_policy p where p.polrelid = c.oid),
          'indexes', (select jsonb_agg(pg_get_indexdef(i.indexrelid) order by i.indexrelid) from pg_index i where i.indrelid = c.oid),
          'constraints', (select jsonb_agg(pg_get_constraintdef(k.oid) order by k.conname) from pg_constraint k where k.conrelid = c.oid)))
          from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')),
       'functions', (select jsonb_agg(p.oid::regprocedure::text order by p.oid::regprocedure::text) from pg_proc p where p.pronamespace = 'lighter'::regnamespace)))`,
  )
}

/** All rows back in their tables, and nothing of ours left on them. */
export async function expectUndone(zoo: Zoo, before: string): Promise<void> {
  const { environment } = zoo
  const { code, stdout } = await lighter(environment, ['restore', '--all'])
  const named = /^not restored: .*/gm.exec(stdout)?.[0]
  expect(named).toEqual(
    zoo.shape.attack.named === undefined ? undefined : expect.stringContaining(zoo.shape.attack.named),
  )
  expect(code).toBe(named === undefined ? 0 : 1)
  expect(await dumpOf(zoo, 'public')).toEqual(await dumpOf(zoo, 'twin'))
  for (const source of await zoo.sources())
    expect(
      await value(environment.admin, 'select lighter.detach($1::regclass, $2)', [
        source.tableSql,
        source.jsonColumn,
      ]),
    ).toBe(true)
  expect(await structureOf(environment)).toBe(before)
  expect(await dumpOf(zoo, 'public')).toEqual(await dumpOf(zoo, 'twin'))
}
