// Invariant 1 while the application goes on writing: updates and deletes at every step of the way.
import { beforeAll, describe, expect, test } from 'vitest'
import type { SignalPoint } from '../../src/offload/signals.ts'
import {
  asJsonbText,
  createSignals,
  drained,
  hydrated,
  hydratedMany,
  insertMessage,
  newConversation,
  rawMetadata,
  useDaemon,
  useEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'

const environment = await useEnvironment()
const signals = createSignals()
await useDaemon(environment, { signal: signals.signal })
let conversationId: string

beforeAll(async () => {
  conversationId = (await newConversation(environment)).conversationId
})

const heavy = (mark: string) =>
  `{"model": "m", "tool_interactions": [{"mark": "${mark}"}], "trace": "${mark}${'~'.repeat(9000)}"}`
const update = (id: string, expression: string, value: string) =>
  environment.app.query(`update conversation_messages set metadata = ${expression} where id = $1`, [
    id,
    value,
  ])

/** Holds the offload of a fresh row at `point`, lets the application act, lets go and waits for the queue. */
async function whileAt(point: SignalPoint, act: (id: string) => Promise<unknown>): Promise<string> {
  const hold = signals.holdAt(point)
  const id = await insertMessage(environment, conversationId, heavy('before'))
  await hold.reached
  await act(id)
  hold.release()
  await drained(environment)
  return id
}

const points: SignalPoint[] = [
  'after-claim',
  'after-plan',
  'after-register',
  'after-upload',
  'before-commit',
  'after-commit',
]

describe.for(points)('at %s', point => {
  test('an update of the whole metadata is kept, and offloaded again', async () => {
    const id = await whileAt(point, row => update(row, '$2::jsonb', heavy('after')))
    expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, heavy('after')))
    expect(await rawMetadata(environment, id)).not.toContain('~')
  })

  test('an update to something light is kept, inline', async () => {
    const id = await whileAt(point, row => update(row, '$2::jsonb', '{"light": 1e400}'))
    expect(await rawMetadata(environment, id)).toBe(await asJsonbText(environment, '{"light": 1e400}'))
  })

  test('a new key is kept beside what was there', async () => {
    const id = await whileAt(point, row => update(row, 'metadata || $2::jsonb', '{"rating": 5}'))
    const written = await asJsonbText(environment, heavy('before').replace('{', '{"rating": 5, '))
    expect(await asJsonbText(environment, await hydrated(environment, id))).toBe(written)
  })

  test('tool_interactions written again are kept', async () => {
    const id = await whileAt(point, row =>
      update(row, `jsonb_set(metadata, '{tool_interactions}', $2::jsonb)`, '["again"]'),
    )
    const written = await asJsonbText(
      environment,
      heavy('before').replace('[{"mark": "before"}]', '["again"]'),
    )
    expect(await asJsonbText(environment, await hydrated(environment, id))).toBe(written)
    expect(await rawMetadata(environment, id)).not.toContain('again')
  })

  test('a deleted row stays deleted', async () => {
    const id = await whileAt(point, row =>
      environment.app.query('delete from conversation_messages where id = $1', [row]),
    )
    expect(await hydratedMany(environment, [id])).toEqual([undefined])
  })

  test('a row deleted and inserted again under its id is what was inserted last', async () => {
    const id = await whileAt(point, async row => {
      await environment.app.query('delete from conversation_messages where id = $1', [row])
      await environment.app.query(
        `insert into conversation_messages (id, conversation_id, role, content, metadata) values ($1, $2, 'assistant', '', $3)`,
        [row, conversationId, heavy('reborn')],
      )
    })
    expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, heavy('reborn')))
  })
})

describe('an offloaded row that is written again', () => {
  const offloaded = async (metadata: string) => {
    const id = await insertMessage(environment, conversationId, metadata)
    await drained(environment)
    expect(await rawMetadata(environment, id)).toContain('_ref')
    return id
  }

  test.for(['[]', '{}', 'null', '"redacted"', '0'])(
    'with tool_interactions cleared to %s, and then heavy with something else, does not bring the old ones back',
    async cleared => {
      const id = await offloaded('{"model": "m", "tool_interactions": ["secret"]}')
      await update(id, `metadata || $2::jsonb`, `{"tool_interactions": ${cleared}}`)
      const written = await asJsonbText(environment, `{"model": "m", "tool_interactions": ${cleared}}`)
      expect(await hydrated(environment, id)).toBe(written)
      await update(id, `metadata || $2::jsonb`, `{"trace": "${'~'.repeat(9000)}"}`)
      await drained(environment)
      expect(await rawMetadata(environment, id)).toContain('artifact_metadata_ref')
      expect(await asJsonbText(environment, await hydrated(environment, id))).toBe(
        await asJsonbText(
          environment,
          `{"model": "m", "tool_interactions": ${cleared}, "trace": "${'~'.repeat(9000)}"}`,
        ),
      )
    },
  )

  test('by a stale copy of the whole, read before the offload, is that copy', async () => {
    const id = await offloaded(heavy('stale'))
    await update(id, '$2::jsonb', heavy('stale'))
    await drained(environment)
    expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, heavy('stale')))
  })

  test('by a copy of what is in the row now keeps what it points to', async () => {
    const id = await offloaded(heavy('copied'))
    await update(id, '$2::jsonb', (await rawMetadata(environment, id)) ?? '')
    await drained(environment)
    expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, heavy('copied')))
  })
})

test('a row that came back under its id, between being found gone and the commit, is offloaded', async () => {
  const id = await insertMessage(environment, conversationId, heavy('first'))
  await drained(environment)
  await environment.app.query('delete from conversation_messages where id = $1', [id])
  const hold = signals.holdAt('before-commit')
  await environment.admin.query(`select lighter.requeue('conversation_messages', array[$1])`, [id])
  await hold.reached
  await environment.app.query(
    `insert into conversation_messages (id, conversation_id, role, content, metadata) values ($1, $2, 'assistant', '', $3)`,
    [id, conversationId, heavy('second')],
  )
  hold.release()
  await drained(environment)
  expect(await rawMetadata(environment, id)).toContain('_ref')
  expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, heavy('second')))
})

test('a name that turns into a pointer between plan and commit is not mistaken for one of ours', async () => {
  const { tenantId, conversationId: own } = await newConversation(environment)
  const artifactId = '01890000-0000-7000-8000-000000000001'
  const metadata = `{"tool_interactions": ["mine"], "tool_interactions_ref": "${artifactId}", "trace": "${'~'.repeat(9000)}"}`
  const hold = signals.holdAt('before-commit')
  const id = await insertMessage(environment, own, metadata)
  await hold.reached
  await environment.admin.query(
    `insert into artifact_refs (id, tenant_id, kind, r2_key) values ($1, $2::uuid, 'attachment', 'tenants/' || ($2::uuid)::text || '/a.json')`,
    [artifactId, tenantId],
  )
  hold.release()
  await drained(environment)
  const text = await hydrated(environment, id)
  expect(JSON.parse(text ?? '')).toMatchObject({ tool_interactions: ['mine'], trace: '~'.repeat(9000) })
  await environment.admin.query('delete from artifact_refs where id = $1', [artifactId])
})

test('a row held by a long transaction is neither waited for nor lost', async () => {
  const holder = await environment.app.connect()
  try {
    const id = await insertMessage(environment, conversationId, heavy('held'))
    await holder.query('begin')
    await holder.query('select from conversation_messages where id = $1 for update', [id])
    // Others go on meanwhile, though they are in the same queue.
    const other = await insertMessage(environment, conversationId, heavy('free'))
    const done = async () =>
      (await rawMetadata(environment, other))?.includes('artifact_metadata_ref') === true
    await expect.poll(done, { timeout: 20_000 }).toBe(true)
    await holder.query(
      `update conversation_messages set metadata = metadata || '{"held": true}' where id = $1`,
      [id],
    )
    await holder.query('commit')
    await drained(environment)
    const written = await asJsonbText(environment, heavy('held').replace('{', '{"held": true, '))
    expect(await asJsonbText(environment, await hydrated(environment, id))).toBe(written)
  } finally {
    holder.release()
  }
})

test('the application never waits for a row that is being uploaded', async () => {
  const hold = signals.holdAt('before-commit')
  const id = await insertMessage(environment, conversationId, heavy('uploading'))
  await hold.reached
  const client = await environment.app.connect()
  try {
    await client.query(`set lock_timeout = '1ms'`)
    await client.query(`update conversation_messages set metadata = '{"instant": true}' where id = $1`, [id])
  } finally {
    await client.query('reset lock_timeout')
    client.release()
    hold.release()
  }
  await drained(environment)
  expect(await rawMetadata(environment, id)).toBe('{"instant": true}')
})

test('the same row rewritten ten times, each time offloaded, hydrates to the last version', async () => {
  const id = await insertMessage(environment, conversationId, heavy('0'))
  for (let round = 1; round <= 10; round++) {
    await drained(environment)
    await update(id, '$2::jsonb', heavy(String(round)))
    expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, heavy(String(round))))
  }
  await drained(environment)
  expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, heavy('10')))
})

test('the same row added to ten times, each time over the threshold, hydrates to the sum', async () => {
  const id = await insertMessage(environment, conversationId, heavy('sum'))
  const parts: string[] = []
  for (let round = 1; round <= 10; round++) {
    await drained(environment)
    const part = `"part${round}": "${String(round).repeat(9000)}"`
    parts.push(part)
    await update(id, 'metadata || $2::jsonb', `{${part}}`)
  }
  await drained(environment)
  expect(Buffer.byteLength((await rawMetadata(environment, id)) ?? '')).toBeLessThan(8000)
  const written = await asJsonbText(environment, heavy('sum').replace('{', `{${parts.join(', ')}, `))
  expect(await asJsonbText(environment, await hydrated(environment, id))).toBe(written)
})

test('the same row updated all the time, with no pause for the daemon, loses nothing', async () => {
  const id = await insertMessage(environment, conversationId, heavy('0'))
  for (let round = 1; round <= 200; round++) {
    await update(id, '$2::jsonb', heavy(String(round)))
    if (round % 20 === 0) {
      expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, heavy(String(round))))
    }
  }
  await drained(environment)
  expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, heavy('200')))
  expect(await rawMetadata(environment, id)).not.toContain('~')
})

test('a row whose tenant changed between plan and commit is stored for the new tenant only', async () => {
  const { conversationId: moved } = await newConversation(environment)
  const { tenantId: target } = await newConversation(environment)
  const hold = signals.holdAt('before-commit')
  const id = await insertMessage(environment, moved, heavy('moved'))
  await hold.reached
  await environment.app.query('update conversations set tenant_id = $2 where id = $1', [moved, target])
  hold.release()
  await drained(environment)
  expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, heavy('moved')))
  const { rows } = await environment.admin.query(
    'select distinct tenant_id from artifact_refs where row_id = $1',
    [id],
  )
  expect(rows).toEqual([{ tenant_id: target }])
})

test('a table that was detached during the upload is left as it is', async () => {
  await environment.admin.query(`
    create table notes (id bigint generated always as identity primary key, tenant_id uuid, metadata jsonb);
    select lighter.attach('notes')`)
  const { tenantId } = await newConversation(environment)
  const hold = signals.holdAt('before-commit')
  await environment.admin.query('insert into notes (tenant_id, metadata) values ($1, $2)', [
    tenantId,
    heavy('note'),
  ])
  await hold.reached
  await environment.admin.query(`grant all on notes to lighter_daemon`)
  await environment.admin.query(`select lighter.detach('notes')`)
  await environment.admin.query(`grant all on notes to lighter_daemon`)
  hold.release()
  await insertMessage(environment, conversationId, heavy('next'))
  await drained(environment)
  const { rows } = await environment.admin.query<{ metadata: string }>('select metadata::text from notes')
  expect(rows).toEqual([{ metadata: await asJsonbText(environment, heavy('note')) }])
})

test('after all of this every artifact has its object and every object is known', async () => {
  await drained(environment)
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
  expect(await strayArtifacts(environment)).toEqual([])
})
