// Values of every type leave their column and come back as exactly the bytes that were written.
import { randomBytes, randomUUID } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import { hydrate } from '../../src/artifacts/hydrate.ts'
import { readRows } from '../../src/artifacts/rows.ts'
import { enqueueRows } from '../../src/backfill/enqueue.ts'
import { findHeavy } from '../../src/backfill/page.ts'
import { loadSources } from '../../src/source/sources.ts'
import { drained, until, useDaemon, useEnvironment } from '../support/environment.ts'
import { value } from '../support/sql.ts'
import { age, runNow } from '../support/sweep.ts'
import {
  attachValueTable,
  combinations,
  heavyValue,
  hydratedValue,
  insertValue,
  newValueTable,
  rawValue,
  restoreTable,
  sourceOf,
  updateValue,
  type ValueMode,
  type ValueTable,
  type ValueType,
} from '../support/value-tables.ts'

const environment = await useEnvironment()
await useDaemon(environment, { env: { STREAM_THRESHOLD_BYTES: '200000' } })

const contentTypes: Record<ValueType, string> = {
  jsonb: 'application/json',
  json: 'application/json',
  text: 'text/plain; charset=utf-8',
  bytea: 'application/octet-stream',
}

describe.each(combinations)('%s in mode %s', (type, mode) => {
  test('a heavy value leaves and is read as it was, a light one stays', async () => {
    const table = await newValueTable(environment, type, mode)
    const heavy = heavyValue(type)
    const light = heavyValue(type, 'light', 100)
    const ids = [await insertValue(environment, table, heavy), await insertValue(environment, table, light)]
    const none = await insertValue(environment, table, null)
    await drained(environment)
    const [left = '', stayed = ''] = ids
    const row = await rawValue(environment, table, left)
    expect(row.pointer).toMatch(/^[0-9a-f-]{36}$/)
    expect(row.bytes?.toString() ?? null).toBe(mode === 'whole' ? null : `{"artifact_ref": "${row.pointer}"}`)
    expect(await hydratedValue(environment, table, left)).toEqual(heavy)
    expect(await rawValue(environment, table, stayed)).toEqual({ bytes: light, pointer: null })
    expect(await hydratedValue(environment, table, stayed)).toEqual(light)
    expect(await hydratedValue(environment, table, none)).toBe(null)
    const { rows } = await environment.admin.query(
      'select id, row_id, kind, field, content_type, size_bytes::int from artifact_refs where source_id = $1',
      [table.sourceId],
    )
    expect(rows).toEqual([
      {
        id: row.pointer,
        row_id: left,
        kind: 'column_value',
        field: null,
        content_type: contentTypes[type],
        size_bytes: heavy.length,
      },
    ])
  })

  test('a value written over an offloaded one is offloaded in its place', async () => {
    const table = await newValueTable(environment, type, mode)
    const id = await insertValue(environment, table, heavyValue(type, 'first'))
    await drained(environment)
    const first = await rawValue(environment, table, id)
    await updateValue(environment, table, id, heavyValue(type, 'second'))
    if (mode === 'whole') expect((await rawValue(environment, table, id)).pointer).not.toBe(first.pointer)
    await drained(environment)
    expect((await rawValue(environment, table, id)).pointer).not.toBe(first.pointer)
    expect(await hydratedValue(environment, table, id)).toEqual(heavyValue(type, 'second'))
    await updateValue(environment, table, id, heavyValue(type, 'light', 50))
    await drained(environment)
    expect(await rawValue(environment, table, id)).toEqual({
      bytes: heavyValue(type, 'light', 50),
      pointer: null,
    })
  })

  test('a value that is too long to be held is streamed', async () => {
    const table = await newValueTable(environment, type, mode)
    const large = heavyValue(type, 'large – ✓', 1_000_000)
    const id = await insertValue(environment, table, large)
    await drained(environment)
    expect((await rawValue(environment, table, id)).pointer).not.toBe(null)
    expect((await hydratedValue(environment, table, id))?.equals(large)).toBe(true)
    const { rows } = await environment.admin.query(
      'select content_type, r2_key from artifact_refs where source_id = $1 and byte_offset is null',
      [table.sourceId],
    )
    expect(rows[0]?.content_type).toBe(contentTypes[type])
    expect(rows[0]?.r2_key).toMatch(/\.(json|txt|bin)$/)
  })
})

const everyByte = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte))
const repeated = (bytes: Buffer, length: number) => Buffer.alloc(length, bytes)

describe('bytes that something could change on their way', () => {
  const texts: Record<string, Buffer> = {
    'control characters, the separator of our own texts among them': Buffer.from(
      '\x01\x1f\x1e\x7f\t\r\n'.repeat(2000),
    ),
    'escapes that spell NUL, quotes and backslashes': Buffer.from(
      `\\u0000\\000\\x00"'\\\\{},NULL`.repeat(500),
    ),
    'a byte order mark, and characters of two to four bytes': Buffer.from(
      `\ufeff${'é–漢🚢\u{10ffff}\ufffe\uffff'.repeat(800)}`,
    ),
    'spaces and line ends at both ends': Buffer.from(`\r\n  ${' '.repeat(9000)}x \n\n`),
    'what spells bytes in hex': Buffer.from(`\\x${'00ff'.repeat(3000)}`),
  }
  describe.each(combinations.filter(([type]) => type === 'text' || type === 'bytea'))(
    '%s in mode %s',
    (type, mode) => {
      test.each(Object.entries(texts))('%s', async (_, bytes) => {
        const long = Buffer.concat(new Array(Math.ceil(300_000 / bytes.length)).fill(bytes))
        await expectExact(type, mode, [bytes, long])
      })
    },
  )

  test('bytea: every byte, what is no UTF-8, and what looks like a compressed frame', async () => {
    await expectExact('bytea', 'whole', [
      repeated(everyByte, 8192 + 256),
      repeated(Buffer.from([0xc3, 0x28, 0xed, 0xa0, 0x80, 0xff, 0xfe, 0x00]), 9001),
      Buffer.alloc(10_000),
      Buffer.concat([Buffer.from([0x28, 0xb5, 0x2f, 0xfd]), randomBytes(20_000)]),
      repeated(everyByte, 1_000_003),
    ])
  })

  const json = {
    'white space, the order of keys and keys that come twice': `\n{ "b" : 1,\t"a":[ 1 , 2 ],"b":2 ,"c":"${'x'.repeat(9000)}"\r\n}  `,
    'numbers that jsonb or a double would change': `[1.0, 1.00, 1E5, -0, 12345678901234567890.10, 1e400, ${'0.10,'.repeat(3000)} 1]`,
    'escapes, NUL among them': `{"a": "\\u0000\\ud83d\\ude00\\/\\"", "b": "${'\\u001f'.repeat(2000)}"}`,
  }
  describe.each(combinations.filter(([type]) => type === 'json'))('%s in mode %s', (type, mode) => {
    test.each(Object.entries(json))('%s', async (_, text) => {
      const long = `[${Array.from({ length: 40 }, () => text).join(',')}]`
      await expectExact(type, mode, [Buffer.from(text), Buffer.from(long)])
    })
  })

  test.each(combinations.filter(([type]) => type === 'jsonb'))(
    '%s in mode %s: numbers as Postgres writes them',
    async (type, mode) => {
      const numbers = `[1.0, 12345678901234567890.10, 0.${'0'.repeat(30)}1, "${'x'.repeat(9000)}"]`
      await expectExact(type, mode, [Buffer.from(numbers)])
    },
  )

  test.each(['stub', 'whole'] as const)(
    'jsonb in mode %s: a number of 131,072 digits does not make a value heavy',
    async mode => {
      const table = await newValueTable(environment, 'jsonb', mode)
      const id = await insertValue(environment, table, Buffer.from(`[${'1e131071,'.repeat(20)}1]`))
      const scalar = await insertValue(environment, table, Buffer.from(`"${'x'.repeat(9000)}"`))
      await drained(environment)
      expect((await rawValue(environment, table, id)).pointer).toBe(null)
      expect((await rawValue(environment, table, scalar)).pointer).not.toBe(null)
      expect((await hydratedValue(environment, table, scalar))?.toString()).toBe(`"${'x'.repeat(9000)}"`)
    },
  )

  test.each(combinations)('%s in mode %s: empty and small values stay as they are', async (type, mode) => {
    const small = type === 'json' || type === 'jsonb' ? ['{}', 'null', '""', '0'] : ['', ' ', 'null', '\\x']
    const table = await newValueTable(environment, type, mode)
    for (const text of small) {
      const id = await insertValue(environment, table, Buffer.from(text))
      await drained(environment)
      expect(await rawValue(environment, table, id)).toEqual({ bytes: Buffer.from(text), pointer: null })
      expect(await hydratedValue(environment, table, id)).toEqual(Buffer.from(text))
    }
  })
})

/** Each leaves, and comes back as it was: read, and restored. */
async function expectExact(type: ValueType, mode: ValueMode, values: Buffer[]): Promise<void> {
  const table = await newValueTable(environment, type, mode)
  const ids: string[] = []
  for (const bytes of values) ids.push(await insertValue(environment, table, bytes))
  await drained(environment)
  for (const [i, id] of ids.entries()) {
    expect((await rawValue(environment, table, id)).pointer).not.toBe(null)
    const read = await hydratedValue(environment, table, id)
    expect(read?.equals(values[i] ?? Buffer.alloc(0)), `value ${i} is read as it was`).toBe(true)
  }
  await restoreTable(environment, table)
  for (const [i, id] of ids.entries()) {
    const raw = await rawValue(environment, table, id)
    expect(raw.bytes?.equals(values[i] ?? Buffer.alloc(0)), `value ${i} is restored as it was`).toBe(true)
    expect(raw.pointer).toBe(null)
  }
}

describe('columns', () => {
  test('several of one table, each a source of its own', async () => {
    const { admin, app } = environment
    await admin.query(`
      create table public.calls (id uuid primary key default gen_random_uuid(), tenant_id uuid not null,
                                 metadata jsonb, request json not null, transcript text, recording bytea);
      grant all on public.calls to public`)
    const attached: ValueTable[] = []
    for (const [column, type, mode] of [
      ['request', 'json', 'stub'],
      ['transcript', 'text', 'whole'],
      ['recording', 'bytea', 'whole'],
    ] as const) {
      const { rows } = await admin.query<{ id: number }>(
        `select lighter.attach('public.calls', '${column}'${mode === 'whole' ? ', create_pointer_column => true' : ''}${type === 'text' ? `, phase2_kind => 'chat_transcript', mode => 'whole'` : ''}) as id`,
      )
      attached.push({ name: 'calls', type, mode, sourceId: rows[0]?.id ?? 0 })
    }
    await admin.query(`select lighter.attach('public.calls')`)
    const { rows } = await app.query<{ id: string }>(
      `insert into public.calls (tenant_id, metadata, request, transcript, recording)
       values (gen_random_uuid(), jsonb_build_object('tool_interactions', array[1], 't', repeat('m', 9000)), $1, $2, $3) returning id`,
      [heavyValue('json').toString(), heavyValue('text').toString(), heavyValue('bytea')],
    )
    const id = rows[0]?.id ?? ''
    await drained(environment)
    for (const table of attached) {
      expect(await hydratedValue(environment, table, id)).toEqual(heavyValue(table.type))
    }
    const { rows: kept } = await admin.query(
      `select metadata ? 'artifact_metadata_ref' as metadata, lighter.stub_id(request::text) is not null as request, transcript, recording,
              transcript_artifact_id is not null and recording_artifact_id is not null as ids from public.calls`,
    )
    expect(kept).toEqual([{ metadata: true, request: true, transcript: null, recording: null, ids: true }])
    const { rows: kinds } = await admin.query(
      `select a.kind, a.content_type from artifact_refs a where row_id = $1 order by 1, 2`,
      [id],
    )
    expect(kinds).toEqual([
      { kind: 'assistant_message_metadata', content_type: 'application/json' },
      { kind: 'assistant_message_tool_interactions', content_type: 'application/json' },
      { kind: 'chat_transcript', content_type: 'text/plain; charset=utf-8' },
      { kind: 'column_value', content_type: 'application/json' },
      { kind: 'column_value', content_type: 'application/octet-stream' },
    ])
    // Nothing was uploaded in vain: each column left with the version of the row that it was read from.
    const { rows: objects } = await admin.query(
      `select o.state, o.artifact_count as uploaded,
              (select count(*)::int from artifact_refs a where a.tenant_id = o.tenant_id and a.r2_key = o.r2_key) as used
         from lighter.objects o where o.tenant_id = (select tenant_id from public.calls)`,
    )
    expect(objects).toHaveLength(5)
    for (const object of objects) expect(object).toEqual({ state: 'stored', uploaded: 1, used: 1 })
  })

  test.each([
    ['varchar', 'text', 'stub'],
    ['varchar(20000) not null', 'text', 'stub'],
    ['varchar', 'text', 'whole'],
    ['text collate "de-x-icu"', 'text', 'stub'],
    ['public.any_case', 'text', 'stub'],
    ['public.any_case', 'text', 'whole'],
    ['public.note', 'text', 'stub'],
    ['public.note', 'text', 'whole'],
    ['public.note_of_note', 'text', 'whole'],
    ['public.doc', 'json', 'stub'],
    ['public.doc', 'json', 'whole'],
    ['public.docb', 'jsonb', 'stub'],
    ['public.raw', 'bytea', 'whole'],
    ['json not null', 'json', 'stub'],
    ['jsonb not null', 'jsonb', 'stub'],
    ['text not null', 'text', 'stub'],
  ] as const)('%s', async (declared, type, mode) => {
    await environment.admin.query(`
      do $$ begin
        create domain public.note as text; create domain public.note_of_note as public.note;
        create domain public.doc as json; create domain public.docb as jsonb; create domain public.raw as bytea;
        create collation public.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        create domain public.any_case as text collate public.ci;
      exception when duplicate_object then null; end $$`)
    const table = await newValueTable(environment, type, mode, { declared })
    const bytes = heavyValue(type)
    const id = await insertValue(environment, table, bytes)
    const large = await insertValue(environment, table, heavyValue(type, 'A', 15_000))
    await drained(environment)
    expect((await rawValue(environment, table, id)).pointer).not.toBe(null)
    expect(await hydratedValue(environment, table, id)).toEqual(bytes)
    await restoreTable(environment, table)
    expect(await rawValue(environment, table, id)).toEqual({ bytes, pointer: null })
    expect((await rawValue(environment, table, large)).bytes).toEqual(heavyValue(type, 'A', 15_000))
  })

  test('a domain over jsonb holds documents', async () => {
    const { admin, app } = environment
    await admin.query(`
      create domain public.metadata_document as jsonb check (jsonb_typeof(value) in ('object', 'array'));
      create table public.told (id uuid primary key default gen_random_uuid(), tenant_id uuid not null, metadata public.metadata_document not null);
      grant all on public.told to public;
      select lighter.attach('public.told')`)
    const text = `{"tool_interactions": [{"a": 1.10}], "trace": ${JSON.stringify('x'.repeat(9000))}}`
    const { rows } = await app.query<{ id: string; text: string }>(
      'insert into public.told (tenant_id, metadata) values (gen_random_uuid(), $1) returning id, metadata::text as text',
      [text],
    )
    await drained(environment)
    const id = rows[0]?.id ?? ''
    expect(await value(admin, `select metadata ? 'artifact_metadata_ref' from public.told`)).toBe(true)
    const source = [...(await loadSources(environment.worker)).values()].find(s =>
      s.tableSql.endsWith('.told'),
    )
    if (source === undefined) throw new Error('it is not attached')
    const input = (await readRows(environment.worker, source, [id])).get(id)
    if (input === undefined) throw new Error('no row')
    expect(await hydrate({ db: environment.worker, store: environment.store }, input)).toBe(rows[0]?.text)
  })

  test('a value that is compressed or was moved in the table is weighed as it is', async () => {
    for (const [type, mode] of combinations) {
      const table = await newValueTable(environment, type, mode, { attached: false })
      const before = await insertValue(environment, table, heavyValue(type, 'before', 12_000))
      const after = await attachValueTable(environment, table)
      await environment.app.query(
        `insert into public.${table.name} (tenant_id, value) select tenant_id, value from public.${table.name} where id = $1`,
        [before],
      )
      await drained(environment)
      const { rows } = await environment.admin.query<{ id: string }>(
        `select id::text from public.${table.name} where id <> $1`,
        [before],
      )
      const copy = rows[0]?.id ?? ''
      expect((await rawValue(environment, after, copy)).pointer, `${type} ${mode}`).not.toBe(null)
      expect((await rawValue(environment, after, before)).pointer).toBe(null)
      const source = await sourceOf(environment, after)
      const filter = { tenantId: null, cutoff: null, ageColumn: null }
      const page = await findHeavy(environment.worker, source, filter, null, 10, true)
      expect(page.rows).toEqual([
        { rowId: before, tenantId: expect.any(String), bytes: heavyValue(type, 'before', 12_000).length },
      ])
      await enqueueRows(environment.worker, source.id, [before])
      await drained(environment)
      expect(await hydratedValue(environment, after, before)).toEqual(heavyValue(type, 'before', 12_000))
      expect((await rawValue(environment, after, before)).pointer).not.toBe(null)
    }
  })
})

describe.each(combinations)('%s in mode %s, where rows wait for others', (type, mode) => {
  test('waits with its size, and leaves when it is flushed', async () => {
    const table = await newValueTable(environment, type, mode, {
      attach: `, settle_for => '0', max_wait => '1 hour', phase2_kind => 'agent_trace'`,
    })
    const heavy = heavyValue(type)
    const id = await insertValue(environment, table, heavy)
    const light = await insertValue(environment, table, heavyValue(type, 'light', 100))
    const waiting = () =>
      environment.admin.query<{ row_id: string; phase: number; bytes: number }>(
        'select row_id, phase, bytes from lighter.waiting where source_id = $1 and tenant_id is not null',
        [table.sourceId],
      )
    await until(async () => (await waiting()).rows.length === 1, 'the row waits')
    const [row] = (await waiting()).rows
    expect(row).toMatchObject({ row_id: id, phase: 2 })
    // Of jsonb by its binary form.
    expect(Math.abs((row?.bytes ?? 0) - heavy.length)).toBeLessThan(64)
    expect((await rawValue(environment, table, id)).bytes).toEqual(heavy)
    await environment.admin.query(`select lighter.flush('public.${table.name}')`)
    await drained(environment)
    expect(await hydratedValue(environment, table, id)).toEqual(heavy)
    expect((await rawValue(environment, table, id)).pointer).not.toBe(null)
    expect((await rawValue(environment, table, light)).pointer).toBe(null)
  })

  test('is read back from a pack that was written anew, and passes the verify sweep', async () => {
    const table = await newValueTable(environment, type, mode)
    const tenantId = randomUUID()
    const held = await environment.app.connect()
    const ids: string[] = []
    try {
      // In one transaction, so that they leave in one pack.
      await held.query('begin')
      for (let n = 0; n < 12; n++)
        ids.push(
          await insertValue({ ...environment, app: held }, table, heavyValue(type, `n ${n}`), tenantId),
        )
      await held.query('commit')
    } finally {
      held.release()
    }
    await drained(environment)
    const [kept = '', ...gone] = ids
    const { pointer } = await rawValue(environment, table, kept)
    const place = () =>
      value<string>(environment.admin, 'select r2_key from artifact_refs where id = $1', [pointer])
    const before = await place()
    for (const id of gone) {
      const { pointer: dead } = await rawValue(environment, table, id)
      await environment.admin.query(
        `update artifact_refs set deleted_at = now() - interval '60 days', deleted_reason = 'test' where id = $1`,
        [dead],
      )
    }
    await runNow(environment, 'retention')
    await age(environment, '3 days')
    await runNow(environment, 'compaction')
    expect(await place()).not.toBe(before)
    expect(await hydratedValue(environment, table, kept)).toEqual(heavyValue(type, 'n 0'))
    expect(
      await value(environment.admin, 'select content_type from artifact_refs where id = $1', [pointer]),
    ).toBe(contentTypes[type])
    expect((await runNow(environment, 'verify')).counts).toMatchObject({ damaged: 0 })
  })
})
