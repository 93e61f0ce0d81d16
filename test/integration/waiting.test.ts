// Rows wait, inline and whole, until they are settled and there is enough of their tenant and kind for a PUT to be worth it.
import { beforeEach, describe, expect, test } from 'vitest'
import { loadSources } from '../../src/source/sources.ts'
import { lighterOk } from '../support/black-box.ts'
import { pass, workByHand } from '../support/by-hand.ts'
import {
  asJsonbText,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  useEnvironment,
} from '../support/environment.ts'
import { bucketMismatches } from '../support/invariants.ts'
import { emptyQueue, leaseRows } from '../support/queue.ts'
import { column, value } from '../support/sql.ts'
import { age, runNow } from '../support/sweep.ts'
import { insertToolCalls, isInline as isRowInline, noiseText, toolCall } from '../support/tool-calls.ts'

const environment = await useEnvironment()
environment.env.PACK_MIN_BYTES = '32768'
const { work } = workByHand(environment)
const { admin } = environment

const setDefaults = (settleFor: string, maxWait: string) =>
  admin.query('select lighter.set_defaults($1, $2, 65536)', [settleFor, maxWait])

beforeEach(async () => {
  await environment.admin.query('select lighter.set_pack_sizes(4194304, 32768)')
  await emptyQueue(environment)
  await admin.query('delete from lighter.flushes')
  await setDefaults('1 minute', '24 hours')
})

const insertMany = (conversationId: string, count: number, bytes: number) =>
  insertToolCalls(environment, conversationId, count, bytes)

const placesOf = (id: string) => column(admin, 'select place from lighter.jobs where row_id = $1', [id])
const isInline = (id: string) => isRowInline(environment, id)
const objectsOf = (tenantId: string) =>
  value<number>(admin, 'select count(*)::int from lighter.objects where tenant_id = $1', [tenantId])

describe('rows of a conversation', () => {
  const inSmallPacks = workByHand(environment, { PACK_TARGET_BYTES: '100000', PACK_MIN_BYTES: '32768' })
  const areInline = (ids: string[]) => Promise.all(ids.map(isInline))
  const every = (ids: string[], inline: boolean) => ids.map(() => inline)

  test('that goes on stay, as long as the others fill most of a pack', async () => {
    const { tenantId, conversationId: ended } = await newConversation(environment)
    const goingOn = (await newConversation(environment, tenantId)).conversationId
    const next = (await newConversation(environment, tenantId)).conversationId
    const first = await insertMany(ended, 14, 5000)
    await pass(environment, '30 minutes')
    expect(await inSmallPacks.work()).toMatchObject({ waiting: 14 })
    const second = await insertMany(goingOn, 12, 5000)
    await pass(environment, '61 seconds')
    expect(await inSmallPacks.work()).toMatchObject({ waiting: 12, offloadedRows: 14, objects: 1 })
    expect(await areInline(first)).toEqual(every(first, false))
    expect(await areInline(second)).toEqual(every(second, true))
    // It has ended by now.
    await pass(environment, '11 minutes')
    const third = await insertMany(next, 10, 5000)
    await pass(environment, '61 seconds')
    expect(await inSmallPacks.work()).toMatchObject({ waiting: 10, offloadedRows: 12, objects: 1 })
    expect(await areInline(third)).toEqual(every(third, true))
    await admin.query('select lighter.flush()')
    expect(await inSmallPacks.work()).toMatchObject({ offloadedRows: 10, objects: 1 })
  })

  test('leave with the others when these are too little for a pack', async () => {
    const inLargePacks = workByHand(environment, { PACK_TARGET_BYTES: '100000', PACK_MIN_BYTES: '80000' })
    const { tenantId, conversationId: ended } = await newConversation(environment)
    const goingOn = (await newConversation(environment, tenantId)).conversationId
    await insertMany(ended, 14, 5000)
    await pass(environment, '30 minutes')
    await inLargePacks.work()
    await insertMany(goingOn, 12, 5000)
    await pass(environment, '61 seconds')
    expect(await inLargePacks.work()).toMatchObject({ offloadedRows: 26, objects: 1 })
  })

  test('leave before its end when nothing else would', async () => {
    const { conversationId } = await newConversation(environment)
    const ids = await insertMany(conversationId, 15, 5000)
    await pass(environment, '61 seconds')
    expect(await inSmallPacks.work()).toMatchObject({ waiting: 15 })
    ids.push(...(await insertMany(conversationId, 15, 5000)))
    await pass(environment, '61 seconds')
    expect(await inSmallPacks.work()).toMatchObject({ offloadedRows: 30 })
    expect(await areInline(ids)).toEqual(every(ids, false))
  })

  test('are not parted by what is taken at once', async () => {
    const bySixty = workByHand(environment, { PACK_TARGET_BYTES: '100000', OFFLOAD_BATCH_ROWS: '60' })
    const { tenantId, conversationId: one } = await newConversation(environment)
    const parted = (await newConversation(environment, tenantId)).conversationId
    const other = (await newConversation(environment, tenantId)).conversationId
    await insertMany(one, 50, 2000)
    const ids = await insertMany(parted, 20, 2000)
    await insertMany(other, 50, 2000)
    // All of them seen, and none looked at together with so many that they fill a pack.
    await admin.query(`
      insert into lighter.waiting (source_id, row_id, available_at, enqueued_at, tenant_id, phase, bytes, row_xmin, entity_id)
      select i.source_id, i.row_id, now(), now() - interval '20 hours' + (i.id - min(i.id) over ()) * interval '1 minute', c.tenant_id, 1, 2000, m.xmin, c.id
        from lighter.inbox i join conversation_messages m on m.id::text = i.row_id join conversations c on c.id = m.conversation_id;
      delete from lighter.inbox`)
    await bySixty.work()
    const packs = await column<string>(
      admin,
      'select distinct r2_key from public.artifact_refs where tenant_id = $1 and row_id = any ($2)',
      [tenantId, ids],
    )
    expect(packs).toHaveLength(1)
    expect(await areInline(ids)).toEqual(every(ids, false))
  })
})

test('a document with an outlandish number waits for others, and goes with them, as any other', async () => {
  const { tenantId, conversationId } = await newConversation(environment)
  const insert = (number: string) =>
    insertMessage(environment, conversationId, `{"n": ${number}, "trace": "${noiseText(20_000)}"}`)
  const ids = [await insert('1e66'), await insert('1e-300'), await insert('1e5000'), await insert('7')]
  const written = await Promise.all(ids.map(id => rawMetadata(environment, id)))
  await pass(environment, '61 seconds')
  expect(await work()).toMatchObject({ waiting: 4, objects: 0 })
  await pass(environment, '25 hours')
  expect(await work()).toMatchObject({ offloadedRows: 4, objects: 1 })
  expect(await objectsOf(tenantId)).toBe(1)
  expect(await Promise.all(ids.map(id => hydrated(environment, id)))).toEqual(written)
})

describe('a row that was just written', () => {
  test('settles first, in the inbox; then it waits for others, and nothing is sent', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(2000))
    expect(await work()).toMatchObject({ claimed: 0 })
    expect(await placesOf(id)).toEqual(['inbox'])
    await pass(environment, '59 seconds')
    expect(await work()).toMatchObject({ claimed: 0 })
    await pass(environment, '2 seconds')
    expect(await work()).toMatchObject({ claimed: 1, waiting: 1, objects: 0 })
    expect(await placesOf(id)).toEqual(['waiting'])
    const { rows } = await admin.query<{ tenantId: string; bytes: number; phase: number }>(
      'select tenant_id as "tenantId", bytes, phase from lighter.waiting where row_id = $1',
      [id],
    )
    expect(rows[0]).toMatchObject({ tenantId, phase: 1 })
    expect(rows[0]?.bytes).toBeGreaterThan(1900)
    expect(rows[0]?.bytes).toBeLessThan(2200)
    expect(await work()).toMatchObject({ claimed: 0 })
    expect(await objectsOf(tenantId)).toBe(0)
    expect(await isInline(id)).toBe(true)
  })

  test('goes on waiting after max_wait with less than PACK_MIN_BYTES, and leaves with the one that makes it enough', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const [first = ''] = await insertMany(conversationId, 1, 20_000)
    await pass(environment, '25 hours')
    expect(await work()).toMatchObject({ waiting: 1, objects: 0 })
    await pass(environment, '25 hours')
    expect(await work()).toMatchObject({ claimed: 0 })
    const [second = ''] = await insertMany(conversationId, 1, 20_000)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ offloadedRows: 2, objects: 1 })
    expect(await objectsOf(tenantId)).toBe(1)
    for (const id of [first, second]) expect(await isInline(id)).toBe(false)
    expect(await column(admin, 'select place from lighter.jobs')).toEqual([])
  })

  test('waits in vain for rows of another tenant, or of another kind', async () => {
    const one = await newConversation(environment)
    const other = await newConversation(environment)
    const ids = [
      ...(await insertMany(one.conversationId, 1, 20_000)),
      ...(await insertMany(other.conversationId, 1, 20_000)),
      await insertMessage(environment, one.conversationId, JSON.stringify({ trace: noiseText(20_000) })),
    ]
    await pass(environment, '25 hours')
    expect(await work()).toMatchObject({ waiting: 3, objects: 0 })
    expect(await column(admin, 'select phase from lighter.waiting order by phase')).toEqual([1, 1, 2])
    for (const id of ids) expect(await isInline(id)).toBe(true)
  })

  test('waits for no others when it is large: 64 KiB are worth a PUT, which takes along what is settled', async () => {
    const { conversationId } = await newConversation(environment)
    const [small = ''] = await insertMany(conversationId, 1, 2000)
    await insertMany(conversationId, 1, 70_000)
    const other = await insertMany((await newConversation(environment)).conversationId, 1, 2000)
    expect(await work()).toMatchObject({ claimed: 0 })
    await pass(environment, '61 seconds')
    const [late = ''] = await insertMany(conversationId, 1, 2000)
    expect(await work()).toMatchObject({ claimed: 3, waiting: 1, offloadedRows: 2, objects: 1 })
    expect(await isInline(small)).toBe(false)
    for (const id of [late, ...other]) expect(await isInline(id)).toBe(true)
  })

  test('leaves once settled with as much as fills a pack', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const ids = await insertMany(conversationId, 85, 50_000)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 0, offloadedRows: 85, objects: 1 })
    expect(await objectsOf(tenantId)).toBe(1)
    expect(await isInline(ids[0] ?? '')).toBe(false)
  })

  test('of both kinds makes one object where one of them has too little for its own', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const written: [id: string, metadata: string][] = []
    for (let n = 0; n < 13; n++) {
      const metadata = JSON.stringify({
        tool_interactions: [{ text: noiseText(200) }],
        trace: noiseText(9000),
      })
      written.push([await insertMessage(environment, conversationId, metadata), metadata])
    }
    await pass(environment, '25 hours')
    expect(await work()).toMatchObject({ offloadedRows: 13, artifacts: 26, objects: 1 })
    expect(await objectsOf(tenantId)).toBe(1)
    const kinds = await admin.query(
      `select kind, count(*)::int as artifacts from artifact_refs where tenant_id = $1 group by kind order by kind`,
      [tenantId],
    )
    expect(kinds.rows).toEqual([
      { kind: 'assistant_message_metadata', artifacts: 13 },
      { kind: 'assistant_message_tool_interactions', artifacts: 13 },
    ])
    for (const [id, metadata] of written)
      expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, metadata))
    const sums = `select tenant_id, kind, sum(artifacts), sum(payload_bytes), sum(objects), sum(object_bytes), sum(live_artifacts)`
    const odd = await admin.query(
      `(${sums} from lighter.storage_entries group by 1, 2 having sum(artifacts) + sum(objects) > 0)
       except (${sums} from lighter.storage_recount group by 1, 2)`,
    )
    expect(odd.rows).toEqual([])
    // One kind expires, the other is there after all sweeps.
    await admin.query(
      `update artifact_refs set expires_at = now() - interval '1 day' where tenant_id = $1 and kind like '%metadata'`,
      [tenantId],
    )
    for (let n = 0; n < 3; n++) {
      for (const name of ['retention', 'compaction', 'orphans'] as const) await runNow(environment, name)
      await age(environment, '8 days')
    }
    expect(await runNow(environment, 'verify')).toMatchObject({ outcome: 'done', counts: { damaged: 0 } })
    expect(
      await column(
        admin,
        'select distinct kind from artifact_refs where tenant_id = $1 and purged_at is null',
        [tenantId],
      ),
    ).toEqual(['assistant_message_tool_interactions'])
    expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
  })

  test('and with as much in several goes', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    await insertMany(conversationId, 45, 50_000)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 45, objects: 0 })
    await insertMany(conversationId, 45, 50_000)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 45, offloadedRows: 90, objects: 1 })
    expect(await objectsOf(tenantId)).toBe(1)
  })
})

describe('a row that is written again', () => {
  test('settles again, also when only another column was', async () => {
    const { conversationId } = await newConversation(environment)
    const [id = ''] = await insertMany(conversationId, 1, 70_000)
    await pass(environment, '50 seconds')
    await environment.app.query(`update conversation_messages set content = 'edited' where id = $1`, [id])
    await pass(environment, '15 seconds')
    expect(await work()).toMatchObject({ waiting: 1, objects: 0 })
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ offloadedRows: 1, objects: 1 })
  })

  test('while it waits, waits again when its turn comes, with the version that it has then', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const ids = await insertMany(conversationId, 2, 20_000)
    await pass(environment, '23 hours 59 minutes 50 seconds')
    expect(await work()).toMatchObject({ waiting: 2 })
    await environment.app.query(`update conversation_messages set content = 'edited' where id = $1`, [ids[0]])
    // Both are overdue in a moment, and then they go whatever was written.
    expect(await work()).toMatchObject({ claimed: 0 })
    await setDefaults('1 minute', '48 hours')
    await insertMany(conversationId, 45, 50_000)
    await pass(environment, '61 seconds')
    await work()
    await insertMany(conversationId, 45, 50_000)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 46, offloadedRows: 91, objects: 1 })
    expect(await isInline(ids[0] ?? '')).toBe(true)
    expect(await placesOf(ids[0] ?? '')).toEqual(['waiting'])
    const known = await value<string>(admin, 'select row_xmin::text from lighter.waiting where row_id = $1', [
      ids[0],
    ])
    const present = await value<string>(admin, 'select xmin::text from conversation_messages where id = $1', [
      ids[0],
    ])
    expect(known).toBe(present)
    await admin.query('select lighter.flush()')
    expect(await work()).toMatchObject({ offloadedRows: 1 })
    expect(await objectsOf(tenantId)).toBe(2)
  })

  test('every 20 seconds for a day makes two objects at most', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(40_000))
    let last = ''
    // Shorter by a factor: a day of 1,440 writes, one a settling time of 3 of them.
    await setDefaults('3 minutes', '24 hours')
    for (let n = 0; n < 1440; n++) {
      last = toolCall(40_000)
      await environment.app.query('update conversation_messages set metadata = $2 where id = $1', [id, last])
      await pass(environment, '1 minute')
      if (n % 4 === 0) await work()
    }
    expect(await objectsOf(tenantId)).toBeLessThanOrEqual(1)
    await pass(environment, '5 minutes')
    await work()
    await pass(environment, '25 hours')
    await work()
    expect(await objectsOf(tenantId)).toBeLessThanOrEqual(2)
    expect(await isInline(id)).toBe(false)
    expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, last))
  }, 120_000)

  test('and deleted, or made small, cost no request', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const [gone = '', small = ''] = await insertMany(conversationId, 2, 20_000)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 2 })
    await environment.app.query('delete from conversation_messages where id = $1', [gone])
    await environment.app.query(`update conversation_messages set metadata = '{}' where id = $1`, [small])
    await pass(environment, '25 hours')
    expect(await work()).toMatchObject({ gone: 1, nothing: 1, objects: 0 })
    expect(await objectsOf(tenantId)).toBe(0)
    expect(await column(admin, 'select place from lighter.jobs')).toEqual([])
  })

  test('and what is left of its group is too little: it waits on with its true size', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const ids = await insertMany(conversationId, 4, 10_000)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 4 })
    for (const id of ids.slice(1))
      await environment.app.query('delete from conversation_messages where id = $1', [id])
    await pass(environment, '25 hours')
    expect(await work()).toMatchObject({ gone: 3, waiting: 1, objects: 0 })
    expect(await objectsOf(tenantId)).toBe(0)
    expect(await column(admin, 'select bytes from lighter.waiting')).toEqual([10_014])
    expect(await work()).toMatchObject({ claimed: 0 })
  })
})

describe('lighter.flush', () => {
  test('lets what waits go at once, settled or not, however little; what is written later waits', async () => {
    const { conversationId } = await newConversation(environment)
    const [waits = ''] = await insertMany(conversationId, 1, 1000)
    await pass(environment, '61 seconds')
    await work()
    const [fresh = ''] = await insertMany(conversationId, 1, 1000)
    await admin.query('select lighter.flush()')
    const [later = ''] = await insertMany(conversationId, 1, 1000)
    expect(await work()).toMatchObject({ offloadedRows: 2 })
    for (const id of [waits, fresh]) expect(await isInline(id)).toBe(false)
    expect(await isInline(later)).toBe(true)
  })

  test('of one tenant leaves the others waiting', async () => {
    const one = await newConversation(environment)
    const other = await newConversation(environment)
    const [mine = ''] = await insertMany(one.conversationId, 1, 1000)
    const [its = ''] = await insertMany(other.conversationId, 1, 1000)
    await pass(environment, '61 seconds')
    await work()
    const [mineToo = ''] = await insertMany(one.conversationId, 1, 1000)
    const [itsToo = ''] = await insertMany(other.conversationId, 1, 1000)
    await admin.query('select lighter.flush(tenant => $1)', [one.tenantId])
    expect(await work()).toMatchObject({ offloadedRows: 2 })
    for (const id of [mine, mineToo]) expect(await isInline(id)).toBe(false)
    for (const id of [its, itsToo]) expect(await isInline(id)).toBe(true)
    expect(await placesOf(itsToo)).toHaveLength(1)
  })

  test('of a table that is not attached is refused', async () => {
    await expect(admin.query(`select lighter.flush('conversations')`)).rejects.toMatchObject({
      message: 'public.conversations is not attached',
      hint: 'See select relation, json_column from lighter.sources;',
    })
  })

  test('moves no row that is pinned, and none of a source that is paused', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const [id = ''] = await insertMany(conversationId, 1, 1000)
    await pass(environment, '61 seconds')
    await work()
    await admin.query('update lighter.sources set paused = true')
    await admin.query('select lighter.flush()')
    expect(await work()).toMatchObject({ claimed: 0 })
    await admin.query('update lighter.sources set paused = false')
    await admin.query('insert into lighter.pins (source_id, tenant_id) select id, $1 from lighter.sources', [
      tenantId,
    ])
    expect(await work()).toMatchObject({ nothing: 1, objects: 0 })
    expect(await isInline(id)).toBe(true)
    await admin.query('delete from lighter.pins')
  })
})

describe('the settings', () => {
  const attach = (options: string) =>
    admin.query(`select lighter.attach('public.conversation_messages', ${options})`)

  test('of a source override those of all, and can be changed while it is attached', async () => {
    try {
      await attach(
        `settle_for => '10 minutes', max_wait => '2 days', ship_alone_bytes => 2048, min_bytes => 100`,
      )
      const [source] = [...(await loadSources(environment.worker)).values()]
      expect(source).toMatchObject({
        settleMs: 600_000,
        maxWaitMs: 172_800_000,
        shipAloneBytes: 2048,
        minBytes: 100,
      })
      const { conversationId } = await newConversation(environment)
      const [id = ''] = await insertMany(conversationId, 1, 3000)
      await pass(environment, '9 minutes')
      expect(await work()).toMatchObject({ claimed: 0 })
      await attach(`settle_for => '1 second'`)
      expect(await work()).toMatchObject({ offloadedRows: 1 })
      expect(await isInline(id)).toBe(false)
    } finally {
      await attach(`settle_for => '-1 s', max_wait => '-1 s', ship_alone_bytes => 0, min_bytes => 0`)
    }
    const [source] = [...(await loadSources(environment.worker)).values()]
    expect(source).toMatchObject({
      settleMs: 60_000,
      maxWaitMs: 86_400_000,
      shipAloneBytes: 65_536,
      minBytes: 0,
    })
  })

  test('that make no sense are refused, with all that is wrong', async () => {
    await expect(
      attach(`settle_for => '31 days', ship_alone_bytes => 1, min_bytes => -1`),
    ).rejects.toMatchObject({
      message: expect.stringMatching(/min_bytes[\s\S]*settle_for[\s\S]*ship_alone_bytes/),
    })
  })

  test('of all likewise, by their names', async () => {
    for (const [settleFor, maxWait, alone] of [
      ['-1 s', '1 h', 65_536],
      ['1 s', '91 days', 65_536],
      ['1 s', '1 h', 1023],
    ]) {
      await expect(
        admin.query('select lighter.set_defaults($1, $2, $3)', [settleFor, maxWait, alone]),
      ).rejects.toMatchObject({
        code: '22023',
        message: expect.stringMatching(/^settle_for must be between 0 and 30 days, max_wait/),
      })
    }
  })

  test('with max_wait 0 a row leaves when it is settled, however small', async () => {
    await setDefaults('1 minute', '0')
    const { conversationId } = await newConversation(environment)
    const [id = ''] = await insertMany(conversationId, 1, 500)
    expect(await work()).toMatchObject({ claimed: 0 })
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ offloadedRows: 1, objects: 1 })
    expect(await isInline(id)).toBe(false)
  })

  test('with settle_for 0 a row waits only for others', async () => {
    await setDefaults('0', '24 hours')
    const { conversationId } = await newConversation(environment)
    await insertMany(conversationId, 3, 12_000)
    expect(await work()).toMatchObject({ waiting: 3, objects: 0 })
    await pass(environment, '24 hours')
    expect(await work()).toMatchObject({ offloadedRows: 3, objects: 1 })
  })

  test('of a source that is to wait no more let go what has waited', async () => {
    const { conversationId } = await newConversation(environment)
    const [settled = ''] = await insertMany(conversationId, 1, 500)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 1 })
    const [id = ''] = await insertMany(conversationId, 1, 500)
    await pass(environment, '61 seconds')
    await environment.app.query(`update conversation_messages set content = 'edited' where id = $1`, [id])
    expect(await work()).toMatchObject({ waiting: 1 })
    await setDefaults('0', '0')
    expect(await work()).toMatchObject({ offloadedRows: 2 })
    for (const each of [settled, id]) expect(await isInline(each)).toBe(false)
  })

  test('writers wake nobody for a row that is to wait', async () => {
    const body = () =>
      value<string>(
        admin,
        `select prosrc from pg_proc where proname = 'enqueue_' || (select id from lighter.sources) and pronamespace = 'lighter'::regnamespace`,
      )
    expect(await body()).not.toContain('wake_daemon')
    await setDefaults('0', '0')
    expect(await body()).toContain('wake_daemon')
  })

  test('a field below min_bytes stays, in a document of any size', async () => {
    await setDefaults('0', '0')
    try {
      await attach('min_bytes => 300')
      const { conversationId } = await newConversation(environment)
      const small = await insertMessage(environment, conversationId, toolCall(100))
      const large = await insertMessage(environment, conversationId, toolCall(400))
      const whole = JSON.stringify({ tool_interactions: [{ text: noiseText(100) }], trace: noiseText(9000) })
      const document = await insertMessage(environment, conversationId, whole)
      expect(await work()).toMatchObject({ offloadedRows: 2, artifacts: 2 })
      expect(await isInline(small)).toBe(true)
      expect(await isInline(large)).toBe(false)
      expect(await column(admin, 'select kind from artifact_refs where row_id = $1', [document])).toEqual([
        'assistant_message_metadata',
      ])
      expect(await hydrated(environment, document)).toBe(await asJsonbText(environment, whole))
    } finally {
      await attach('min_bytes => 0')
    }
  })
})

describe('whoever works on rows knows those that wait', () => {
  /** One that settles, one that waits, one that is being worked on, and one that failed. */
  async function everywhere(conversationId: string): Promise<string[]> {
    const [waits = '', leased = '', failed = ''] = await insertMany(conversationId, 3, 2000)
    await pass(environment, '61 seconds')
    await work()
    const [source] = [...(await loadSources(environment.worker)).values()]
    await admin.query('delete from lighter.waiting where row_id = $1', [leased])
    await leaseRows(admin, source?.id ?? 0, [leased])
    await admin.query(
      `update lighter.waiting set (tenant_id, phase, bytes, row_xmin) = (null, null, null, null), attempts = 2, last_error = 'bad',
              available_at = now() + interval '1 hour' where row_id = $1`,
      [failed],
    )
    const [settles = ''] = await insertMany(conversationId, 1, 2000)
    return [settles, waits, leased, failed]
  }

  test('an erasure leaves none of the tenant, of rows that are gone neither, and all of others', async () => {
    const one = await newConversation(environment)
    const other = await newConversation(environment)
    const kept = await everywhere(other.conversationId)
    const erased = await everywhere(one.conversationId)
    await admin.query('select lighter.flush(tenant => $1)', [one.tenantId])
    // Its application deletes first, as it should, and not all.
    await environment.app.query('delete from conversation_messages where id = any ($1)', [[erased[1]]])
    await lighterOk(environment, ['erase', '--tenant', one.tenantId, '--yes'])
    expect(await column(admin, 'select row_id from lighter.jobs where row_id = any ($1)', [erased])).toEqual(
      [],
    )
    expect(
      await column(admin, 'select row_id from lighter.jobs where row_id = any ($1)', [kept]),
    ).toHaveLength(4)
    expect(await column(admin, 'select tenant_id from lighter.flushes')).toEqual([])
  })

  test('of one that was moved to another tenant the erasure of the former leaves its place', async () => {
    const one = await newConversation(environment)
    const [id = ''] = await insertMany(one.conversationId, 1, 2000)
    await pass(environment, '61 seconds')
    await work()
    await admin.query('update conversations set tenant_id = gen_random_uuid() where id = $1', [
      one.conversationId,
    ])
    await lighterOk(environment, ['erase', '--tenant', one.tenantId, '--yes'])
    expect(await placesOf(id)).toEqual(['waiting'])
    await admin.query('select lighter.flush()')
    expect(await work()).toMatchObject({ offloadedRows: 1 })
  })

  test('a row that is restored does not leave because it was waiting', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const [id = '', other = ''] = await insertMany(conversationId, 2, 40_000)
    await admin.query('select lighter.flush()')
    expect(await work()).toMatchObject({ offloadedRows: 2 })
    const written = JSON.parse(toolCall(2000)).tool_interactions
    await environment.app.query('update conversation_messages set metadata = metadata || $2 where id = $1', [
      id,
      JSON.stringify({ tool_interactions: written }),
    ])
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 1 })
    await environment.app.query('update conversation_messages set metadata = metadata || $2 where id = $1', [
      other,
      JSON.stringify({ tool_interactions: written }),
    ])
    await lighterOk(environment, ['restore', '--tenant', tenantId])
    expect(await column(admin, 'select place from lighter.jobs')).toEqual([])
    await admin.query('select lighter.flush()')
    await pass(environment, '25 hours')
    await work()
    for (const each of [id, other]) expect(await isInline(each)).toBe(true)
    await lighterOk(environment, ['unpin', '--all'])
  })

  test('a backfill lets them wait for others like all, and goes on meanwhile', async () => {
    await setDefaults('0', '24 hours')
    const { tenantId, conversationId } = await newConversation(environment)
    const ids = await insertMany(conversationId, 30, 2000)
    await emptyQueue(environment)
    await lighterOk(environment, ['backfill', '--restart', '--tenant', tenantId])
    expect(await work()).toMatchObject({ waiting: 30, objects: 0 })
    expect(await column(admin, 'select distinct priority from lighter.waiting')).toEqual([10])
    await pass(environment, '25 hours')
    expect(await work()).toMatchObject({ offloadedRows: 30, objects: 1 })
    for (const id of ids) expect(await isInline(id)).toBe(false)
  })

  test('detaching forgets them', async () => {
    await admin.query(
      'create table short_lived (id bigint primary key, tenant_id uuid not null, metadata jsonb)',
    )
    await admin.query(`select lighter.attach('short_lived')`)
    await admin.query(`insert into short_lived values (1, gen_random_uuid(), $1)`, [toolCall(2000)])
    await admin.query('select lighter.flush()')
    await admin.query(`select lighter.detach('short_lived')`)
    expect(await column(admin, 'select source_id from lighter.flushes where source_id <> 1')).toEqual([])
    await admin.query('drop table short_lived')
  })
})

describe('what Postgres has compressed to nearly nothing', () => {
  test('waits with the size that it has', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(
      environment,
      conversationId,
      JSON.stringify({ trace: 'abc '.repeat(4000) }),
    )
    expect(
      await value<number>(admin, 'select pg_column_size(metadata) from conversation_messages where id = $1', [
        id,
      ]),
    ).toBeLessThan(400)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 1, objects: 0 })
    expect(await column(admin, 'select phase from lighter.waiting')).toEqual([2])
    const [bytes = 0] = await column<number>(admin, 'select bytes from lighter.waiting')
    expect(bytes).toBeGreaterThan(15_900)
    expect(bytes).toBeLessThan(16_200)
  })
})

describe('what is told of rows that wait', () => {
  test('offload_latency counts from when it was their turn, also where they failed then', async () => {
    await admin.query('delete from lighter.latency_changes; delete from lighter.latency_hours')
    const { conversationId } = await newConversation(environment)
    await insertMany(conversationId, 3, 20_000)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 3 })
    await pass(environment, '25 hours')
    await admin.query(
      `update lighter.waiting set (tenant_id, phase, bytes, row_xmin) = (null, null, null, null), attempts = 1, last_error = 'bad'
        where row_id = (select min(row_id) from lighter.waiting)`,
    )
    expect(await work()).toMatchObject({ offloadedRows: 3 })
    expect(await value<number>(admin, 'select max(max_ms) from lighter.offload_latency')).toBeLessThan(60_000)
  })

  test('queue_health does not count them as a lag', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    await insertMany(conversationId, 2, 20_000)
    await pass(environment, '61 seconds')
    await work()
    await insertMany(conversationId, 3, 1000)
    const { rows } = await admin.query('select * from lighter.queue_health')
    expect(rows[0]).toMatchObject({ depth: '0', due: '0', settling: '3', waiting: '2', oldest_seconds: null })
    expect(Number(rows[0].waiting_bytes)).toBeGreaterThan(40_000)
    expect(rows[0].waiting_seconds).toBeGreaterThan(60)
    expect(rows[0].next_departure.getTime() - Date.now()).toBeGreaterThan(23 * 3_600_000)
    const groups = await admin.query('select * from lighter.waiting_groups where tenant_id = $1', [tenantId])
    expect(groups.rows).toMatchObject([
      { kind: 'assistant_message_tool_interactions', rows: '2', settled_rows: '2' },
    ])
    expect(groups.rows[0].leaves_at).not.toBeNull()
  })
})
