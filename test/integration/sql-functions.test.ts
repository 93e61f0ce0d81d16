// docs/sql.md and the functions that it is about: every example is run, and what it says of them is tried.
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'
import { insertFrame } from '../support/artifacts.ts'
import { blocksOf, readDoc } from '../support/doc-blocks.ts'
import {
  drained,
  insertMessage,
  newConversation,
  startDaemon,
  useEnvironment,
} from '../support/environment.ts'
import { asRole, column, errorOf, uniqueRole, value } from '../support/sql.ts'

const environment = await useEnvironment()

interface Row {
  tenantId?: string
  id?: string
  kind?: string
  entityType?: string | null
  entityId?: string | null
  createdAt?: string
  deletedAt?: string | null
  sourceId?: number | null
  rowId?: string | null
  field?: string | null
  sizeBytes?: number | null
}

/** Rows of artifact_refs as they stand; no object is behind them. */
async function insert(rows: Row[]): Promise<string[]> {
  const ids: string[] = []
  for (const row of rows) {
    const id = row.id ?? randomUUID()
    ids.push(id)
    await environment.admin.query(
      `insert into artifact_refs (id, tenant_id, kind, entity_type, entity_id, r2_key, size_bytes, created_at, deleted_at, source_id, row_id, field)
       values ($1, $2, $3, $4, $5, $6, $7, coalesce($8::timestamptz, now()), $9, $10, $11, $12)`,
      [
        id,
        row.tenantId,
        row.kind ?? 'agent_trace',
        row.entityType ?? null,
        row.entityId ?? null,
        `tenants/${row.tenantId}/${id}`,
        row.sizeBytes ?? null,
        row.createdAt ?? null,
        row.deletedAt ?? null,
        row.sourceId ?? null,
        row.rowId ?? null,
        row.field ?? null,
      ],
    )
  }
  return ids
}

const worker = () => environment.worker

describe('the examples of docs/sql.md', () => {
  const blocks = blocksOf(readDoc('sql.md'))

  test('run as the daemon logs in, and show what is there', async () => {
    const daemon = await startDaemon(environment)
    const { tenantId, conversationId } = await newConversation(environment)
    const message = await insertMessage(
      environment,
      conversationId,
      '{"tool_interactions": [{"tool": "search", "ms": 12.5}]}',
    )
    await insertMessage(
      environment,
      conversationId,
      '{"tool_interactions": [{"tool": "lookup", "ms": 12.5}]}',
    )
    await insertMessage(
      environment,
      (await newConversation(environment)).conversationId,
      '{"tool_interactions": [1]}',
    )
    await drained(environment)
    await daemon.stop()
    // One that waits for others.
    await environment.admin.query(
      `insert into lighter.waiting (source_id, row_id, tenant_id, phase, bytes, row_xmin) values (1, $1, $2, 1, 1000, '3')`,
      [message, tenantId],
    )
    const variables: Record<string, string> = {
      tenant: tenantId,
      other_tenant: await value(
        environment.admin,
        'select tenant_id::text from artifact_refs where tenant_id <> $1 limit 1',
        [tenantId],
      ),
      conversation: conversationId,
      message,
      artifact: await value(environment.admin, 'select id::text from artifact_refs where row_id = $1', [
        message,
      ]),
    }
    const examples = blocks.flatMap((block, i) =>
      block.info === 'sql' ? [{ ...block, shown: blocks[i + 1] }] : [],
    )
    expect(examples.length).toBeGreaterThan(12)
    for (const { text, line, heading, shown } of examples) {
      const sql = text.replace(/:'(\w+)'/g, (_, name) => {
        const found = variables[name]
        if (found === undefined) throw new Error(`docs/sql.md:${line} has a variable ${name}`)
        return pg.escapeLiteral(found)
      })
      const client = await worker().connect()
      try {
        const results = [await client.query(sql)].flat()
        const answers = results.filter(result => result.command === 'SELECT')
        expect(answers.length, sql).toBeGreaterThan(0)
        // What is shown below an example is psql's table: its columns, and as many rows.
        if (shown?.info === 'text' && shown.line === line + text.split('\n').length + 2) {
          const [head = '', , ...rows] = shown.text.trimEnd().split('\n')
          const [answer] = answers
          expect(
            head.split('|').map(name => name.trim()),
            sql,
          ).toEqual(answer?.fields.map(f => f.name))
          expect(answer?.rows.length, sql).toBe(rows.filter(row => row.includes('|')).length)
        }
        if (heading === 'As one tenant') {
          expect(answers.slice(1).map(answer => answer.rows[0])).toEqual([{ count: '2' }, { of_others: '0' }])
        } else if (
          !/failures|retry|retention_due|first_page|damaged_artifacts|sweep_history|waiting_groups/.test(sql)
        ) {
          expect(answers[0]?.rows.length, sql).toBeGreaterThan(0)
        }
      } catch (error) {
        throw new Error(`docs/sql.md:${line}: ${String(error)}\n${sql}`, { cause: error })
      } finally {
        client.release()
      }
    }
  })

  test('of each reader’s own comment run too', async () => {
    const comments = await column<string>(
      worker(),
      `select obj_description(p.oid) from pg_proc p
        where p.pronamespace = 'lighter'::regnamespace and obj_description(p.oid) like '%Example: %'`,
    )
    expect(comments.length).toBeGreaterThanOrEqual(5)
    for (const comment of comments) {
      const sql = (comment.split('Example: ')[1] ?? '').replace(/'<\w+>'/g, `'${randomUUID()}'`)
      await worker().query(sql)
    }
  })

  test('name every function that a tenant may call, and every view', async () => {
    const text = readDoc('sql.md')
    const callable = await column<string>(
      environment.admin,
      `select distinct p.proname::text from pg_proc p
        where p.pronamespace = 'lighter'::regnamespace and has_function_privilege('lighter_tenant', p.oid, 'execute')
          -- Of these others of ours are made.
          and p.proname not in ('as_uuid', 'artifact', 'entity_frames', 'own_entity_frames')
          -- What triggers ask.
          and p.proname !~ '^heavy_[0-9]+$'`,
    )
    for (const name of callable) expect(text).toContain(`\`${name}`)
    const views = await column<string>(
      environment.admin,
      `select viewname::text from pg_views where schemaname = 'lighter'`,
    )
    for (const view of views)
      expect(text).toMatch(new RegExp(`lighter\\.${view}\\b|…${view.replace('storage', '')}\``))
  })
})

describe('artifact_get', () => {
  test('finds an artifact of the tenant, with a tombstone or without, and no other’s', async () => {
    const tenantId = randomUUID()
    const [live, dead] = await insert([{ tenantId }, { tenantId, deletedAt: '2026-01-01' }])
    const get = (tenant: string | null, id: string | null | undefined) =>
      column(worker(), 'select id from lighter.artifact_get($1, $2)', [tenant, id])
    expect(await get(tenantId, live)).toEqual([live])
    expect(await get(tenantId, dead)).toEqual([dead])
    expect(await get(randomUUID(), live)).toEqual([])
    expect(await get(tenantId, randomUUID())).toEqual([])
    expect(await get(null, live)).toEqual([])
    expect(await get(tenantId, null)).toEqual([])
  })
})

describe('artifact_list', () => {
  const list = (args: string, values: unknown[]) =>
    column<string>(worker(), `select id from lighter.artifact_list(${args})`, values)

  test('is newest first, and of one moment by id, whatever the filter', async () => {
    const tenantId = randomUUID()
    const entityId = randomUUID()
    const rows = Array.from({ length: 60 }, (_, n) => ({
      tenantId,
      id: randomUUID(),
      kind: ['agent_trace', 'attachment', 'workflow_state'][n % 3] ?? '',
      entityType: ['run', 'contact', null][n % 4 === 3 ? 2 : n % 2] ?? null,
      entityId: n % 4 === 3 ? null : entityId,
      // Many of one moment, and some a microsecond apart.
      createdAt: `2026-01-01 00:00:00.00000${Math.floor(n / 12)}+00`,
    }))
    await insert(rows)
    const newestFirst = (of: typeof rows) =>
      of
        .toSorted((a, b) =>
          a.createdAt === b.createdAt ? (a.id < b.id ? 1 : -1) : a.createdAt < b.createdAt ? 1 : -1,
        )
        .map(row => row.id)
    const filters: [sql: string, (row: (typeof rows)[number]) => boolean][] = [
      ['', () => true],
      [`, of_kind => 'attachment'`, row => row.kind === 'attachment'],
      [`, of_entity_type => 'run'`, row => row.entityType === 'run'],
      [`, of_entity => '${entityId}'`, row => row.entityId === entityId],
      [`, of_entity_type => 'contact', of_entity => '${entityId}'`, row => row.entityType === 'contact'],
      [
        `, of_kind => 'agent_trace', of_entity_type => 'run', of_entity => '${entityId}'`,
        row => row.kind === 'agent_trace' && row.entityType === 'run',
      ],
      [`, of_kind => 'nothing_of_it'`, () => false],
    ]
    for (const [sql, keeps] of filters) {
      const expected = newestFirst(rows.filter(keeps))
      expect(await list(`$1, max_rows => 1000${sql}`, [tenantId]), sql).toEqual(expected)
      const seen: string[] = []
      let last: { id: string; at: string } | undefined
      for (;;) {
        const { rows: page } = await worker().query<{ id: string; at: string }>(
          `select id, created_at::text as at from lighter.artifact_list($1, max_rows => 7, before => $2, before_id => $3${sql})`,
          [tenantId, last?.at ?? null, last?.id ?? null],
        )
        seen.push(...page.map(row => row.id))
        last = page.at(-1)
        if (last === undefined) break
      }
      expect(seen, sql).toEqual(expected)
    }
    // Without the id of the last row, rows of its moment are left out.
    expect(await list('$1, max_rows => 1000, before => $2', [tenantId, rows[12]?.createdAt])).toEqual(
      newestFirst(rows.filter(row => row.createdAt < (rows[12]?.createdAt ?? ''))),
    )
  })

  test('is one list of artifacts in frames and of others, with every filter and page', async () => {
    const tenantId = randomUUID()
    const entities = Array.from({ length: 3 }, () => randomUUID())
    const moment = (n: number) => `2026-01-01 00:00:00.00000${n % 5}+00`
    const kinds = ['agent_trace', 'attachment']
    const types = ['run', 'contact', null]
    for (let n = 0; n < 12; n++) {
      await insertFrame(environment.admin, {
        tenantId,
        kind: kinds[n % 2] ?? '',
        entityType: types[n % 3] ?? null,
        createdAt: moment(Math.floor(n / 3)),
        payloads: Array.from({ length: 1 + (n % 7) }, (_, i) => ({
          // Of one frame in four none belongs to an entity.
          entityId: n % 4 === 3 || (n + i) % 4 === 3 ? null : (entities[(n + i) % 4] ?? null),
          void: i === 2,
        })),
      })
    }
    await insert(
      Array.from({ length: 20 }, (_, n) => ({
        tenantId,
        kind: kinds[n % 2] ?? '',
        entityType: types[n % 3] ?? null,
        entityId: n % 4 === 3 ? null : (entities[n % 3] ?? null),
        createdAt: moment(Math.floor(n / 4)),
      })),
    )
    // Some have a tombstone: of one frame all.
    const { rowCount } = await environment.admin.query(
      `update artifact_refs set deleted_at = now()
        where tenant_id = $1 and (ordinal in (1, 4) or frame_id in (select min(id::text)::uuid from lighter.frames where tenant_id = $1)
                                  or ordinal is null and left(id::text, 1) in ('3', '7'))`,
      [tenantId],
    )
    expect(rowCount).toBeGreaterThan(10)
    for (const kind of [null, ...kinds])
      for (const type of types)
        for (const entity of [null, ...entities]) {
          const args = [tenantId, kind, type, entity]
          const expected = await column<string>(
            environment.admin,
            `select id from artifact_refs
              where tenant_id = $1 and kind = coalesce($2, kind) and ($3::text is null or entity_type = $3)
                and ($4::uuid is null or entity_id = $4) and deleted_at is null
              order by created_at desc, id desc`,
            args,
          )
          const what = JSON.stringify(args)
          expect(await list('$1, $2, $3, $4, 1000', args), what).toEqual(expected)
          for (const size of [1, 3, 7]) {
            const seen: string[] = []
            let last: { id: string; at: string } | undefined
            for (;;) {
              const { rows: page } = await worker().query<{ id: string; at: string }>(
                `select id, created_at::text as at from lighter.artifact_list($1, $2, $3, $4, $5, $6, $7)`,
                [...args, size, last?.at ?? null, last?.id ?? null],
              )
              expect(page.length).toBe(Math.min(size, expected.length - seen.length))
              seen.push(...page.map(row => row.id))
              last = page.at(-1)
              if (last === undefined) break
            }
            expect(seen, what).toEqual(expected)
          }
          // The tenant itself finds the same, by another way to its entities.
          const own = await asRole(environment.worker, 'lighter_tenant', async db => {
            await db.query(`select set_config('app.current_tenant_id', $1, true)`, [tenantId])
            return column<string>(db, 'select id from lighter.artifact_list($1, $2, $3, $4, 1000)', args)
          })
          expect(own, what).toEqual(expected)
        }
    // A row that is gone, or never was, is a place in the list all the same.
    const all = await list('$1, max_rows => 1000', [tenantId])
    const { rows } = await worker().query<{ id: string; at: string }>(
      `select id, created_at::text as at from lighter.artifact_list($1, max_rows => 1000)`,
      [tenantId],
    )
    for (const { id, at } of rows) {
      const before = rows.filter(row => row.at < at || (row.at === at && row.id < id)).map(row => row.id)
      const after = id.replace(/....$/, '7fff')
      expect(await list('$1, max_rows => 1000, before => $2, before_id => $3', [tenantId, at, id])).toEqual(
        before,
      )
      expect(
        await list('$1, max_rows => 1000, before => $2, before_id => $3', [tenantId, at, after]),
      ).toEqual(
        all.filter(other => rows.some(r => r.id === other && (r.at < at || (r.at === at && r.id < after)))),
      )
    }
  })

  test('finds an entity’s artifacts whether or not their type was said', async () => {
    const tenantId = randomUUID()
    const entityId = randomUUID()
    const ids = await insert([
      { tenantId, entityId, createdAt: '2026-01-02' },
      { tenantId, entityId, entityType: 'run', createdAt: '2026-01-01' },
    ])
    expect(await list('$1, of_entity => $2', [tenantId, entityId])).toEqual(ids)
  })

  test('has limits: 50, 1000 at most, none for 0, null and less', async () => {
    const tenantId = randomUUID()
    await environment.admin.query(
      `insert into artifact_refs (tenant_id, kind, r2_key) select $1::uuid, 'agent_trace', 'tenants/' || $1 || '/' || n
         from generate_series(1, 1100) n`,
      [tenantId],
    )
    const count = async (rows: string) => (await list(`$1${rows}`, [tenantId])).length
    expect(await count('')).toBe(50)
    expect(await count(', max_rows => 1001')).toBe(1000)
    for (const none of ['0', '-1', 'null']) expect(await count(`, max_rows => ${none}`), none).toBe(0)
  })

  test('leaves out tombstones and other tenants, and for no tenant has nothing', async () => {
    const [tenantId, other, entityId] = [randomUUID(), randomUUID(), randomUUID()]
    const of = { entityType: 'run', entityId }
    const [live] = await insert([
      { tenantId, ...of },
      { tenantId, ...of, deletedAt: '2026-01-01' },
      { tenantId: other, ...of },
    ])
    for (const filter of ['', `, 'agent_trace'`, `, null, 'run'`, `, null, null, '${entityId}'`]) {
      expect(await list(`$1${filter}`, [tenantId])).toEqual([live])
      expect(await list(`$1${filter}`, [null])).toEqual([])
      expect(await list(`$1${filter}`, [randomUUID()])).toEqual([])
    }
  })
})

describe('artifacts_for_entity, offloaded_rows', () => {
  test('are of one entity of one tenant, newest first, without tombstones', async () => {
    const [tenantId, other, entityId] = [randomUUID(), randomUUID(), randomUUID()]
    const of = { tenantId, entityType: 'conversation', entityId }
    const row = { ...of, sourceId: 1, rowId: 'm1', field: 'tool_interactions', sizeBytes: 10 }
    const ids = await insert([
      { ...row, createdAt: '2026-01-04' },
      { ...row, field: null, sizeBytes: 30, createdAt: '2026-01-03' },
      { ...row, rowId: 'm2', sizeBytes: null, createdAt: '2026-01-02' },
      { ...of, createdAt: '2026-01-01' },
      { ...row, deletedAt: '2026-01-05', createdAt: '2026-01-05' },
      { ...row, tenantId: other },
      { ...row, entityId: randomUUID() },
      { ...row, entityType: 'contact' },
    ])
    const args = [tenantId, 'conversation', entityId]
    expect(await column(worker(), 'select id from lighter.artifacts_for_entity($1, $2, $3)', args)).toEqual(
      ids.slice(0, 4),
    )
    expect(
      await column(worker(), 'select id from lighter.artifacts_for_entity($1, $2, $3, 2)', args),
    ).toEqual(ids.slice(0, 2))
    const { rows } = await worker().query(
      `select source_id, row_id, artifacts::int, payload_bytes::int, fields, newest = '2026-01-04'::timestamptz as first
         from lighter.offloaded_rows($1, $2, $3)`,
      args,
    )
    expect(rows).toEqual([
      {
        source_id: 1,
        row_id: 'm1',
        artifacts: 2,
        payload_bytes: 40,
        fields: ['(whole)', 'tool_interactions'],
        first: true,
      },
      {
        source_id: 1,
        row_id: 'm2',
        artifacts: 1,
        payload_bytes: null,
        fields: ['tool_interactions'],
        first: false,
      },
    ])
    for (const name of ['artifacts_for_entity', 'offloaded_rows']) {
      for (const none of ['0', 'null', '-5']) {
        const sql = `select count(*)::int from lighter.${name}($1, $2, $3, ${none})`
        expect(await value(worker(), sql, args)).toBe(0)
      }
      for (const nulls of [
        [null, 'conversation', entityId],
        [tenantId, null, entityId],
        [tenantId, 'conversation', null],
      ])
        expect(await value(worker(), `select count(*)::int from lighter.${name}($1, $2, $3)`, nulls)).toBe(0)
    }
  })

  test('count those in frames and others together, each once, as the tenant itself finds them', async () => {
    const [tenantId, entityId] = [randomUUID(), randomUUID()]
    const of = { entityType: 'conversation', entityId }
    const [own] = await insert([
      { tenantId, ...of, sourceId: 1, rowId: 'm1', sizeBytes: 1000, createdAt: '2026-01-01' },
    ])
    const first = await insertFrame(environment.admin, {
      tenantId,
      entityType: 'conversation',
      createdAt: '2026-01-02',
      field: 'tool_interactions',
      payloads: [
        { rowId: 'm1', size: 1, entityId },
        { rowId: 'm2', size: 2, entityId },
        { rowId: 'm3', size: 4, entityId: randomUUID() },
        { rowId: 'm2', size: 8, entityId },
        { rowId: 'm4', size: 16, entityId, void: true },
        { rowId: 'm5', size: 32, entityId },
        { rowId: 'm6', size: 64, entityId: null },
      ],
    })
    const second = await insertFrame(environment.admin, {
      tenantId,
      entityType: 'conversation',
      createdAt: '2026-01-03',
      payloads: [{ rowId: 'm2', size: 128, entityId }],
    })
    await insertFrame(environment.admin, {
      tenantId,
      entityType: 'contact',
      payloads: [{ rowId: 'm2', size: 256, entityId }],
    })
    await environment.admin.query(
      'update artifact_refs set deleted_at = now() where tenant_id = $1 and row_id = $2',
      [tenantId, 'm5'],
    )
    const counted = [
      ['m2', 3, 138, ['(whole)', 'tool_interactions'], '2026-01-03'],
      ['m1', 2, 1001, ['(whole)', 'tool_interactions'], '2026-01-02'],
    ]
    const listed = [second.ids[0], first.ids[3], first.ids[1], first.ids[0], own]
    for (const role of ['lighter_daemon', 'lighter_tenant'])
      await asRole(environment.worker, role, async db => {
        await db.query(`select set_config('app.current_tenant_id', $1, true)`, [
          role === 'lighter_tenant' ? tenantId : '',
        ])
        const args = [tenantId, 'conversation', entityId]
        const { rows } = await db.query({
          text: `select row_id, artifacts::int, payload_bytes::int, fields, newest::date::text from lighter.offloaded_rows($1, $2, $3)`,
          values: args,
          rowMode: 'array',
        })
        expect(rows, role).toEqual(counted)
        expect(
          await column(db, 'select id from lighter.artifacts_for_entity($1, $2, $3)', args),
          role,
        ).toEqual(listed)
      })
  })
})

describe('artifacts_of', () => {
  test('follows what is a pointer, and takes nothing else for one', async () => {
    const [tenantId, other] = [randomUUID(), randomUUID()]
    const [field, whole, dead, foreign] = await insert([
      { tenantId },
      { tenantId },
      { tenantId, deletedAt: '2026-01-01' },
      { tenantId: other },
    ])
    const of = async (metadata: unknown, tenant = tenantId) =>
      (
        await column<string>(worker(), 'select id from lighter.artifacts_of($1, $2)', [
          tenant,
          metadata === undefined ? null : JSON.stringify(metadata),
        ])
      ).sort()
    const pointers = { tool_interactions_ref: field, artifact_metadata_ref: whole, model: 'm' }
    expect(await of(pointers)).toEqual([field, whole].sort())
    expect(await of(pointers, other)).toEqual([])
    expect(await of({ a_ref: dead, b_ref: foreign, c_ref: field, d_ref: field })).toEqual(
      [dead, field].sort(),
    )
    // An element of an array may be a pointer.
    expect(await of([{ a_ref: field }, 1])).toEqual([field])
    for (const nothing of [
      undefined,
      null,
      [],
      7,
      field,
      {},
      { a: field },
      { aref: field },
      { a_ref: null },
      { a_ref: [field] },
      { a_ref: `${field} ` },
      { a_ref: 'not a uuid' },
      { a: { b_ref: field } },
    ])
      expect(await of(nothing), JSON.stringify(nothing)).toEqual([])
  })
})

describe('as lighter_tenant', () => {
  test('a session sees its own tenant, and of others nothing, whatever it asks for', async () => {
    const [tenantId, other, entityId] = [randomUUID(), randomUUID(), randomUUID()]
    const of = { entityType: 'conversation', entityId, sourceId: 1, rowId: 'm' }
    const [mine, theirs] = await insert([
      { tenantId, ...of },
      { tenantId: other, ...of },
    ])
    const all = async (current: string | null, asked: string, id: string | undefined) =>
      asRole(environment.worker, 'lighter_tenant', async db => {
        if (current !== null)
          await db.query(`select set_config('app.current_tenant_id', $1, true)`, [current])
        const counts = []
        for (const [sql, values] of [
          ['lighter.artifact_get($1, $2)', [asked, id]],
          ['lighter.artifact_list($1)', [asked]],
          [`lighter.artifact_list($1, null, null, $2)`, [asked, entityId]],
          [`lighter.artifacts_for_entity($1, 'conversation', $2)`, [asked, entityId]],
          [`lighter.offloaded_rows($1, 'conversation', $2)`, [asked, entityId]],
          ['lighter.artifacts_of($1, $2)', [asked, JSON.stringify({ a_ref: id })]],
          ['public.artifact_refs where tenant_id = $1', [asked]],
        ] as const)
          counts.push(await value(db, `select count(*)::int from ${sql}`, [...values]))
        return counts
      })
    expect(await all(tenantId, tenantId, mine)).toEqual([1, 1, 1, 1, 1, 1, 1])
    expect(await all(tenantId, other, theirs)).toEqual([0, 0, 0, 0, 0, 0, 0])
    expect(await all(null, tenantId, mine)).toEqual([0, 0, 0, 0, 0, 0, 0])
    expect(await all("' or true --", tenantId, mine)).toEqual([0, 0, 0, 0, 0, 0, 0])
  })

  test('a session reads no other table of ours than those of artifact_refs, and writes none', async () => {
    const tenantId = randomUUID()
    const tables = await column<string>(
      environment.admin,
      `select c.oid::regclass::text from pg_class c where c.relnamespace = 'lighter'::regnamespace and c.relkind in ('r', 'v')`,
    )
    expect(tables.length).toBeGreaterThan(10)
    const readable = ['lighter.loose_artifacts', 'lighter.frames', 'lighter.frame_exceptions']
    expect(tables).toEqual(expect.arrayContaining(readable))
    const attempts = [
      ...tables.filter(name => !readable.includes(name)).map(name => `select from ${name}`),
      ...readable.map(name => `delete from ${name}`),
      ...readable.map(name => `update ${name} set tenant_id = tenant_id`),
      `insert into lighter.loose_artifacts (tenant_id, kind, r2_key) values ('${tenantId}', 'x', 'y')`,
      'delete from public.artifact_refs',
      'update public.artifact_refs set tenant_id = tenant_id',
      `insert into public.artifact_refs (tenant_id, kind, r2_key) values ('${tenantId}', 'x', 'y')`,
      `select lighter.set_threshold(2000)`,
      `select lighter.retry()`,
    ]
    for (const sql of attempts) {
      const error = await errorOf(
        asRole(environment.worker, 'lighter_tenant', async db => {
          await db.query(`select set_config('app.current_tenant_id', $1, true)`, [tenantId])
          await db.query(sql)
        }),
      )
      expect([sql, error.code]).toEqual([sql, '42501'])
    }
  })

  test('the functions that write do so for the tenant of the transaction, and not without one', async () => {
    const [tenantId, other] = [randomUUID(), randomUUID()]
    const [theirs] = await insert([{ tenantId: other }])
    const as = <T>(tenant: string | null, sql: string, values: unknown[] = []) =>
      asRole(environment.worker, 'lighter_tenant', async db => {
        if (tenant !== null) await db.query(`select set_config('app.current_tenant_id', $1, true)`, [tenant])
        return value<T>(db, sql, values)
      })
    expect(await as(tenantId, 'select lighter.current_tenant()::text')).toBe(tenantId)
    expect(await as(null, 'select lighter.current_tenant()::text')).toBeNull()
    const key = (of: string) => `p/tenants/${of}/agent_trace/2026/01/01/${randomUUID()}.json`
    const register = (tenant: string | null, objectKey: string) =>
      as(tenant, `select lighter.api_register_object($1, 'agent_trace', 'application/json', null, 1, 1000)`, [
        objectKey,
      ])
    await register(tenantId, key(tenantId))
    expect((await errorOf(register(tenantId, key(other)))).code).toBe('42501')
    expect((await errorOf(register(null, key(tenantId)))).code).toBe('42501')
    // The tenant's prefix is where a key begins, not something that occurs in it.
    const inside = `p/tenants/${other}/agent_trace/tenants/${tenantId}/x.json`
    expect((await errorOf(register(tenantId, inside))).code).toBe('42501')
    const registered = key(other)
    await register(other, registered)
    expect(await as(tenantId, 'select lighter.api_touch_object($1, null, 0)', [registered])).toBe(false)
    const commit = `select id from lighter.api_store_artifact($1, $2, 'agent_trace', null, null, 'application/json', null, 1, 'x', 1, null, null)`
    expect((await errorOf(as(tenantId, commit, [randomUUID(), registered]))).code).toBe('55000')
    expect(await as(tenantId, 'select lighter.api_delete_artifact($1)', [theirs])).toBeNull()
    expect(await as(other, 'select lighter.api_delete_artifact($1)', [theirs])).toBeInstanceOf(Date)
  })
})

describe('other roles', () => {
  test('that were granted the table, but have no policy, see none of it', async () => {
    const role = uniqueRole('browser')
    await insert([{ tenantId: randomUUID() }])
    await environment.admin.query(`create role ${role} nologin`)
    await environment.admin.query(`grant all on all tables in schema public to ${role}`)
    try {
      const all = () =>
        asRole(environment.admin, role, db => value(db, 'select count(*)::int from artifact_refs'))
      // The view has the rights of its reader, who has none on what it is made of; and with those still no policy.
      expect((await errorOf(all())).code).toBe('42501')
      await environment.admin.query(
        `grant usage on schema lighter to ${role}; grant all on lighter.loose_artifacts, lighter.frames, lighter.frame_exceptions to ${role}`,
      )
      expect(await all()).toBe(0)
      const denied = await errorOf(
        asRole(environment.admin, role, db => db.query(`select lighter.artifact_list('${randomUUID()}')`)),
      )
      expect(denied.code).toBe('42501')
    } finally {
      await environment.admin.query(`drop owned by ${role}; drop role ${role}`)
    }
  })

  test('the daemon reads of an attached table what it needs, and writes one column', async () => {
    await worker().query(
      'select id, conversation_id, metadata, created_at from conversation_messages limit 1',
    )
    for (const sql of [
      'select content from conversation_messages',
      'update conversation_messages set role = role',
      'delete from conversation_messages',
      'insert into conversation_messages default values',
      "update lighter.sources set phase1_kind = 'x'",
      'update lighter.settings set threshold_bytes = 2000',
    ])
      expect([sql, (await errorOf(worker().query(sql))).code]).toEqual([sql, '42501'])
  })
})

// Twice: those of some tenants have rows of their own, those of the others are in frames.
describe('on 100,000 artifacts', () => {
  const tenants = () => ({
    big: randomUUID(),
    many: Array.from({ length: 20 }, () => randomUUID()),
    some: [] as string[],
  })
  const sets = { 'rows of their own': tenants(), frames: tenants() }
  const entityId = randomUUID()

  beforeAll(async () => {
    const [loose, inFrames] = [sets['rows of their own'], sets.frames]
    await environment.admin.query(
      `insert into artifact_refs (tenant_id, kind, entity_type, entity_id, r2_key, size_bytes, created_at, source_id, row_id, field)
       select t, (array['agent_trace', 'attachment', 'chat_transcript', 'workflow_state'])[1 + n % 4],
              (array['conversation', 'contact'])[1 + n % 2],
              case when n % 500 = 0 then $3::uuid else gen_random_uuid() end,
              'tenants/' || t || '/' || n, n, now() - n * interval '1 second', 1, n::text, 'tool_interactions'
         from generate_series(1, 50000) n
        cross join lateral (select case when n <= 40000 then $1::uuid else ($2::uuid[])[1 + n % 20] end as t) x`,
      [loose.big, loose.many, entityId],
    )
    // 1000 frames, each of 50 payloads of five entities; some of the payloads have a tombstone.
    await environment.admin.query(
      `insert into lighter.frames (tenant_id, id, kind, created_at, r2_key, byte_offset, byte_length, content_encoding, source_id, field,
                                   entity_type, sizes, places, hashes, row_uuids, entities, entity_places)
       select case when n <= 800 then $1::uuid else ($2::uuid[])[1 + n % 20] end,
              (lpad(to_hex(1750000000000 - n * 50000), 12, '0') || '8' || substr(md5(n::text), 1, 3)
                || 'a' || substr(md5(n::text), 4, 11) || '0000')::uuid,
              (array['agent_trace', 'attachment', 'chat_transcript', 'workflow_state'])[1 + n % 4],
              now() - n * interval '50 seconds',
              'packs/' || n / 10, n % 10 * 4000, 4000, 'zstd', 1, 'tool_interactions',
              (array['conversation', 'contact'])[1 + n / 50 % 2],
              array_fill(n, array[50]), array(select p * n from generate_series(0, 49) p),
              (select string_agg(sha256(int4send(n * 50 + p)), '' order by p) from generate_series(0, 49) p),
              array(select gen_random_uuid() from generate_series(0, 49)),
              array(select case when n % 50 = 0 and p = 3 then $3::uuid else gen_random_uuid() end from generate_series(1, 5) p),
              array(select 1 + p % 5 from generate_series(0, 49) p)
         from generate_series(1, 1000) n`,
      [inFrames.big, inFrames.many, entityId],
    )
    await environment.admin.query(
      `insert into lighter.frame_exceptions (tenant_id, frame_id, ordinal, ordinals, deleted_at)
       select tenant_id, id, 0, array[0, 20, 40], now() from lighter.frames
        where starts_with(r2_key, 'packs/') and byte_offset = 0`,
    )
    await environment.admin.query(
      'vacuum analyze lighter.loose_artifacts, lighter.frames, lighter.frame_exceptions',
    )
    for (const set of Object.values(sets))
      set.some = await column<string>(
        environment.admin,
        'select id::text from artifact_refs where tenant_id = $1 order by sha256, id limit 3',
        [set.big],
      )
  })

  const cases: [what: string, sql: string, values: (set: ReturnType<typeof tenants>) => unknown[]][] = [
    ['artifact_get', 'lighter.artifact_get($1, $2)', ({ big, some }) => [big, some[0]]],
    ['artifact_list of a tenant', 'lighter.artifact_list($1)', ({ big }) => [big]],
    ['artifact_list of a small tenant', 'lighter.artifact_list($1)', ({ many }) => [many[0]]],
    ['artifact_list of a kind', `lighter.artifact_list($1, 'attachment')`, ({ big }) => [big]],
    [
      'artifact_list deep in a list',
      `lighter.artifact_list($1, before => now() - interval '9 hours', before_id => $2)`,
      ({ big, some }) => [big, some[0]],
    ],
    [
      'artifact_list deep in the list of a kind',
      `lighter.artifact_list($1, 'attachment', before => now() - interval '9 hours', before_id => $2)`,
      ({ big, some }) => [big, some[0]],
    ],
    [
      'artifact_list of an entity',
      `lighter.artifact_list($1, null, 'conversation', $2)`,
      ({ big }) => [big, entityId],
    ],
    [
      'artifact_list of an entity of any type',
      'lighter.artifact_list($1, null, null, $2)',
      ({ big }) => [big, entityId],
    ],
    [
      'artifacts_for_entity',
      `lighter.artifacts_for_entity($1, 'conversation', $2)`,
      ({ big }) => [big, entityId],
    ],
    ['offloaded_rows', `lighter.offloaded_rows($1, 'conversation', $2)`, ({ big }) => [big, entityId]],
    [
      'artifacts_of',
      'lighter.artifacts_of($1, $2)',
      ({ big, some }) => [big, JSON.stringify({ a_ref: some[0], b_ref: some[1], model: 'm' })],
    ],
  ]

  const names = Object.keys(sets) as (keyof typeof sets)[]
  test.each(names.flatMap(name => cases.map(([what, sql, values]) => [what, name, sql, values] as const)))(
    '%s in %s reads few pages, by an index, from the first call to the tenth',
    async (_, name, sql, valuesOf) => {
      const values = () => valuesOf(sets[name])
      const db = await worker().connect()
      const begin = async (role: string) => {
        await db.query('begin')
        await db.query(`select set_config('app.current_tenant_id', $1, true), set_config('role', $2, true)`, [
          values()[0],
          role,
        ])
      }
      // Sequential scans of the tables, and rows that they or others went through without an index.
      const scans = async () => {
        const { rows } = await db.query<{ name: string; scans: number; tuples: number }>(
          `select t.name, pg_stat_get_xact_numscans(t.name::regclass)::int as scans,
                  pg_stat_get_xact_tuples_returned(t.name::regclass)::int as tuples
             from (values ('lighter.loose_artifacts'), ('lighter.frames')) t(name)`,
        )
        return rows
      }
      try {
        for (const role of ['lighter_daemon', 'lighter_tenant']) {
          // From the sixth on the plan may be made once for all.
          for (let n = 1; n <= 10; n++) {
            await begin(role)
            const before = await scans()
            const { rows } = await db.query(`select count(*)::int as n from ${sql}`, values())
            const after = await scans()
            await db.query('commit')
            expect(rows[0].n).toBeGreaterThan(0)
            expect([role, n, after]).toEqual([role, n, before])
          }
          await begin(role)
          const plan = await value<{ Plan: { 'Shared Hit Blocks': number; 'Shared Read Blocks': number } }[]>(
            db,
            `explain (analyze, buffers, format json) select * from ${literals(sql, values())}`,
          )
          await db.query('commit')
          const pages = plan[0]?.Plan
          // Of some 1,500 that the table of rows has, and its indexes beside it. Each artifact of a frame that is looked at
          // asks two pages of the exceptions, so that to look at all of the tenant would take some 100,000.
          expect((pages?.['Shared Hit Blocks'] ?? 1e9) + (pages?.['Shared Read Blocks'] ?? 0)).toBeLessThan(
            name === 'frames' ? 1000 : 600,
          )
        }
      } finally {
        await db.query('rollback')
        db.release()
      }
    },
  )

  const literals = (sql: string, values: unknown[]) =>
    sql.replace(/\$(\d)/g, (_, n) => {
      const type = n === '2' && sql.includes('artifacts_of') ? 'jsonb' : 'uuid'
      return `${pg.escapeLiteral(String(values[Number(n) - 1]))}::${type}`
    })
})
