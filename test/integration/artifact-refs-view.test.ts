// public.artifact_refs is a view of frames and of artifacts that have a row each: what it finds, takes and refuses, and
// that the sums of the reports are right after each.
import { randomUUID } from 'node:crypto'
import { beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { lookupArtifacts } from '../../src/catalogue/lookup.ts'
import { migrate } from '../../src/db/migrate.ts'
import { type ArtifactId, artifactInFrame, asTenantId, type FrameId } from '../../src/ids.ts'
import { insertFrame } from '../support/artifacts.ts'
import { useEnvironment } from '../support/environment.ts'
import {
  asRole,
  backendPid,
  column,
  connect,
  ensureSupabaseRoles,
  errorOf,
  grantLikeSupabase,
  untilBlocked,
  value,
} from '../support/sql.ts'

const environment = await useEnvironment({ empty: true })
const { admin } = environment

beforeAll(async () => {
  await ensureSupabaseRoles(admin)
  await grantLikeSupabase(admin, await value(admin, 'select current_user::text'))
  const client = await connect(environment.urls.admin)
  await migrate(client)
  await client.end()
})

let tenantId: string
let frame: FrameId
let ids: ArtifactId[]
const entityId = randomUUID()

/** Of eight payloads, 1 to 8 bytes; the last is no artifact. */
beforeEach(async () => {
  tenantId = randomUUID()
  ;({ frame, ids } = await insertFrame(admin, {
    tenantId,
    kind: 'agent_trace',
    entityType: 'run',
    payloads: Array.from({ length: 8 }, (_, n) => ({
      size: n + 1,
      rowId: `row ${n}`,
      entityId,
      ...(n === 5 && { refersTo: randomUUID() }),
      void: n === 7,
    })),
  }))
  ids = ids.slice(0, 7)
})

/** What the reports say of all artifacts, and that it is what there is. */
const sums = async () => {
  const of = 'tenant_id, kind, artifacts::int, payload_bytes::int, deleted_artifacts::int, deleted_bytes::int'
  const { rows: counted } = await admin.query(
    `select tenant_id, kind, count(*) filter (where deleted_at is null)::int as artifacts,
            coalesce(sum(size_bytes) filter (where deleted_at is null), 0)::int as payload_bytes,
            count(*) filter (where deleted_at is not null)::int as deleted_artifacts,
            coalesce(sum(size_bytes) filter (where deleted_at is not null), 0)::int as deleted_bytes
       from artifact_refs where deleted_at is null or purged_at is null group by 1, 2 order by 1, 2`,
  )
  for (const report of ['storage_entries', 'storage_recount']) {
    const { rows } = await admin.query(
      `select ${of} from (select tenant_id, kind, sum(artifacts) as artifacts, sum(payload_bytes) as payload_bytes,
                                 coalesce(sum(deleted_artifacts), 0) as deleted_artifacts, coalesce(sum(deleted_bytes), 0) as deleted_bytes
                            from lighter.${report} group by 1, 2) s
        where artifacts <> 0 or payload_bytes <> 0 or deleted_artifacts <> 0 or deleted_bytes <> 0 order by 1, 2`,
    )
    expect(rows, report).toEqual(counted)
  }
  const { rows: byKind } = await admin.query(
    `select kind, artifacts::int, payload_bytes::int, deleted_artifacts::int, deleted_bytes::int
       from lighter.storage_by_kind order by kind`,
  )
  const { rows: kinds } = await admin.query(
    `select kind, count(*) filter (where deleted_at is null)::int as artifacts,
            coalesce(sum(size_bytes) filter (where deleted_at is null), 0)::int as payload_bytes,
            count(*) filter (where deleted_at is not null)::int as deleted_artifacts,
            coalesce(sum(size_bytes) filter (where deleted_at is not null), 0)::int as deleted_bytes
       from artifact_refs where deleted_at is null or purged_at is null group by 1 order by 1`,
  )
  expect(byKind).toEqual(kinds)
  const mine = counted.filter(row => row.tenant_id === tenantId)
  return mine.map(row => [row.artifacts, row.payload_bytes, row.deleted_artifacts, row.deleted_bytes])
}

const seen = () =>
  column<string>(admin, 'select id from artifact_refs where tenant_id = $1 order by id', [tenantId])

/** Every way to an artifact by its id. */
const found = async (id: string, tenant = tenantId) => {
  const ways = [
    'select id from artifact_refs where tenant_id = $1 and id = $2',
    'select id from artifact_refs where tenant_id = $1 and id = $2 and frame_id = lighter.frame_of($2)',
    'select id from lighter.artifact_get($1, $2)',
    'select id from lighter.artifacts_get($1, array[$2::uuid])',
    `select id from lighter.artifacts_of($1, jsonb_build_object('a_ref', $2::uuid))`,
  ]
  const results: string[][] = [
    [...(await lookupArtifacts(environment.worker, asTenantId(tenant), [id as ArtifactId])).keys()],
  ]
  for (const sql of ways) results.push(await column(environment.worker, sql, [tenant, id]))
  const [first = []] = results
  for (const result of results) expect(result).toEqual(first)
  return first
}

describe('an id', () => {
  test('of a frame’s artifact finds it, by every way, and what it is', async () => {
    for (const id of ids) expect(await found(id)).toEqual([id])
    const { rows } = await environment.worker.query(
      `select ordinal, row_id, size_bytes::int, entity_id, frame_id, sha256, cardinality(refers_to) as pointers
         from lighter.artifact_get($1, $2)`,
      [tenantId, ids[5]],
    )
    expect(rows).toEqual([
      {
        ordinal: 5,
        row_id: 'row 5',
        size_bytes: 6,
        entity_id: entityId,
        frame_id: frame,
        sha256: expect.stringMatching(/^[0-9a-f]{64}$/),
        pointers: 1,
      },
    ])
    expect(await seen()).toEqual(ids)
  })

  test('beside it finds nothing: an ordinal beyond the frame, one that is none, the same of another tenant', async () => {
    for (const ordinal of [7, 8, 9, 255, 256, 32767, 32768, 65535]) {
      expect(await found(artifactInFrame(frame, ordinal)), String(ordinal)).toEqual([])
    }
    for (const id of ids) expect(await found(id, randomUUID())).toEqual([])
    const other = await insertFrame(admin, { tenantId: randomUUID(), payloads: [{}, {}] })
    for (const id of other.ids) expect(await found(id)).toEqual([])
  })

  test('of a frame that is gone finds nothing, nor does one that differs by a bit', async () => {
    const hex = (ids[3] ?? '').replaceAll('-', '')
    for (let bit = 0; bit < 112; bit++) {
      const flipped = (BigInt(`0x${hex}`) ^ (1n << BigInt(127 - bit))).toString(16).padStart(32, '0')
      const id = flipped.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
      expect(await found(id), `bit ${bit}`).toEqual([])
    }
    await admin.query('delete from lighter.frames where id = $1', [frame])
    for (const id of ids) expect(await found(id)).toEqual([])
    // One of the same millisecond.
    const again = `${frame.slice(0, 19)}${randomUUID().slice(19, 32)}0000` as FrameId
    await insertFrame(admin, { tenantId, id: again, payloads: Array.from({ length: 8 }, () => ({})) })
    for (const id of ids) expect(await found(id)).toEqual([])
    await sums()
  })
})

describe.each(['superuser', 'lighter_daemon', 'service_role'])('as %s', role => {
  const as = async (sql: string, values: unknown[] = []) =>
    role === 'superuser' ? admin.query(sql, values) : asRole(admin, role, db => db.query(sql, values))

  test('an insert makes an artifact of its own, with the defaults of the view', async () => {
    const { rows } = await as(
      `insert into artifact_refs (tenant_id, kind, r2_key, size_bytes) values ($1, 'agent_trace', 'own', 100)
       returning id, created_at is not null as dated, frame_id, ordinal`,
      [tenantId],
    )
    expect(rows).toEqual([{ id: rows[0].id, dated: true, frame_id: rows[0].id, ordinal: null }])
    expect(await found(rows[0].id)).toEqual([rows[0].id])
    expect(await sums()).toEqual([[8, 128, 0, 0]])
  })

  test('an insert is refused of an id that is in a frame’s form, and of a place in a pack', async () => {
    for (const [columns, values] of [
      ['id', `'${artifactInFrame(frame, 7)}'`],
      ['id', `'${randomUUID().replace(/^(.{14})4/, '$18')}'`],
      ['byte_offset', '0'],
      ['byte_length', '1'],
      ['frame_offset', '0'],
    ]) {
      const error = await errorOf(
        as(
          `insert into artifact_refs (tenant_id, kind, r2_key, ${columns}) values ($1, 'k', 'x', ${values})`,
          [tenantId],
        ),
      )
      expect([columns, error.code, error.hint?.slice(0, 5)]).toEqual([columns, '23514', 'Leave'])
    }
    expect(await seen()).toEqual(ids)
    expect(await sums()).toEqual([[7, 28, 0, 0]])
  })

  test('an update of what came off the row is refused, and changes nothing', async () => {
    for (const change of [
      'id = gen_random_uuid()',
      'tenant_id = gen_random_uuid()',
      `kind = 'attachment'`,
      `entity_type = 'contact'`,
      'entity_id = gen_random_uuid()',
      `r2_key = 'elsewhere'`,
      `content_type = 'text/plain'`,
      'size_bytes = 0',
      `sha256 = repeat('0', 64)`,
      'created_by = gen_random_uuid()',
      `created_at = created_at - interval '1 day'`,
      'byte_offset = 1',
      'byte_length = 1',
      'frame_offset = 1',
      'content_encoding = null',
      'source_id = 2',
      `row_id = 'another'`,
      `field = 'f'`,
      'refers_to = null',
    ]) {
      const before = await admin.query('select * from artifact_refs where tenant_id = $1 order by id', [
        tenantId,
      ])
      const error = await errorOf(
        as(`update artifact_refs set ${change}, deleted_at = now() where tenant_id = $1 and ordinal = 2`, [
          tenantId,
        ]),
      )
      expect([change, error.code, error.message]).toEqual([
        change,
        '0A000',
        `artifact ${ids[2]} came off a row, and can not be changed`,
      ])
      const after = await admin.query('select * from artifact_refs where tenant_id = $1 order by id', [
        tenantId,
      ])
      expect(after.rows).toEqual(before.rows)
    }
    expect(await sums()).toEqual([[7, 28, 0, 0]])
  })

  test('an update of the state takes, and one back leaves nothing behind', async () => {
    const update = async (change: string) =>
      (
        await as(`update artifact_refs set ${change} where tenant_id = $1 and id = any ($2) returning id`, [
          tenantId,
          [ids[1], ids[4]],
        ])
      ).rows.map(row => row.id)
    const both = [ids[1], ids[4]]
    expect(await update(`deleted_at = now(), deleted_reason = 'deleted'`)).toEqual(both)
    expect(await sums()).toEqual([[5, 21, 2, 7]])
    expect(await update(`purged_at = now()`)).toEqual(both)
    expect(await sums()).toEqual([[5, 21, 0, 0]])
    expect(await update('purged_at = null, deleted_at = null, deleted_reason = null')).toEqual(both)
    expect(await sums()).toEqual([[7, 28, 0, 0]])
    const state = `expires_at = '2030-01-01', released_at = '2026-01-01', damaged_at = '2026-01-02', damage = 'lost'`
    expect(await update(state)).toEqual(both)
    const { rows } = await admin.query(
      `select ordinal, expires_at = '2030-01-01' and released_at = '2026-01-01' and damaged_at = '2026-01-02' as kept, damage
         from artifact_refs where tenant_id = $1 and damage is not null order by id`,
      [tenantId],
    )
    expect(rows).toEqual([
      { ordinal: 1, kept: true, damage: 'lost' },
      { ordinal: 4, kept: true, damage: 'lost' },
    ])
    expect(await sums()).toEqual([[7, 28, 0, 0]])
    expect(await update(state.replaceAll(/'[^']+'/g, 'null'))).toEqual(both)
    expect(
      await value(admin, 'select count(*)::int from lighter.frame_exceptions where tenant_id = $1', [
        tenantId,
      ]),
    ).toBe(0)
    expect(await seen()).toEqual(ids)
  })

  test('a delete takes away that one, of several frames and others at once', async () => {
    const second = await insertFrame(admin, { tenantId, payloads: [{ size: 10 }, { size: 20 }] })
    await admin.query(
      `insert into artifact_refs (tenant_id, kind, r2_key, size_bytes) values ($1, 'agent_trace', 'own', 100)`,
      [tenantId],
    )
    // One of them has a tombstone.
    await admin.query('update artifact_refs set deleted_at = now() where tenant_id = $1 and id = $2', [
      tenantId,
      ids[0],
    ])
    expect(await sums()).toEqual([[9, 157, 1, 1]])
    const { rowCount } = await as(
      'delete from artifact_refs where tenant_id = $1 and (id = any ($2) or ordinal is null)',
      [tenantId, [ids[0], ids[3], second.ids[1]]],
    )
    expect(rowCount).toBe(4)
    const left = [...ids.filter(id => id !== ids[0] && id !== ids[3]), second.ids[0]].sort()
    expect(await seen()).toEqual(left)
    for (const id of [ids[0], ids[3], second.ids[1]]) expect(await found(id ?? '')).toEqual([])
    for (const id of left) expect(await found(id ?? '')).toEqual([id])
    expect(await sums()).toEqual([[6, 33, 0, 0]])
    expect(
      await value(admin, 'select count(*)::int from lighter.frame_exceptions where tenant_id = $1', [
        tenantId,
      ]),
    ).toBe(0)
    // A second time there is nothing to take away.
    const again = await as('delete from artifact_refs where tenant_id = $1 and id = any ($2)', [
      tenantId,
      [ids[0]],
    ])
    expect(again.rowCount).toBe(0)
    // The last one of all.
    await as('delete from artifact_refs where tenant_id = $1', [tenantId])
    expect(await seen()).toEqual([])
    expect(await sums()).toEqual([])
  })
})

test('of two that change the same artifact the second finds it changed, and leaves it', async () => {
  const first = await connect(environment.urls.admin)
  const second = await connect(environment.urls.admin)
  try {
    for (const [change, late] of [
      ['update artifact_refs set deleted_at = now()', 'update artifact_refs set released_at = now()'],
      ['delete from artifact_refs', 'update artifact_refs set deleted_at = now()'],
    ]) {
      const where = 'where tenant_id = $1 and id = $2'
      const args = [tenantId, change?.startsWith('delete') ? ids[2] : ids[1]]
      await first.query('begin')
      expect((await first.query(`${change} ${where}`, args)).rowCount).toBe(1)
      const pid = await backendPid(second)
      const waiting = second.query(`${late} ${where}`, args)
      await untilBlocked(admin, pid)
      await first.query('commit')
      expect((await waiting).rowCount).toBe(0)
      await sums()
    }
  } finally {
    await first.end()
    await second.end()
  }
})

test('a frame whose artifacts change in many transactions at once is counted right', async () => {
  const large = await insertFrame(admin, {
    tenantId,
    payloads: Array.from({ length: 60 }, (_, n) => ({ size: n })),
  })
  await Promise.all(
    large.ids.map((id, n) =>
      environment.worker.query(
        n % 3 === 0
          ? 'delete from artifact_refs where tenant_id = $1 and id = $2'
          : 'update artifact_refs set deleted_at = now() where tenant_id = $1 and id = $2',
        [tenantId, id],
      ),
    ),
  )
  const deleted = Array.from({ length: 60 }, (_, n) => n).filter(n => n % 3 !== 0)
  expect(await sums()).toEqual([[7, 28, 40, deleted.reduce((sum, n) => sum + n, 0)]])
})
