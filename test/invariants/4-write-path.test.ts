// Invariant 4: the application's write never fails, waits for the store, or for the daemon.
import { describe, expect, test } from 'vitest'
import { claimInbox } from '../../src/offload/claim.ts'
import { conflict } from '../../src/offload/return-jobs.ts'
import { settle } from '../../src/offload/settle.ts'
import {
  createSignals,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  useFreshEnvironment,
} from '../support/environment.ts'
import { leaseRows } from '../support/queue.ts'
import { value } from '../support/sql.ts'

const environment = useFreshEnvironment()

const heavy = '{"tool_interactions": ["heavy"]}'

test('with no daemon at all, rows are written and queued', async () => {
  const { conversationId } = await newConversation(environment)
  for (let i = 0; i < 20; i++) await insertMessage(environment, conversationId, heavy)
  const { rows } = await environment.admin.query('select count(*)::int as n from lighter.jobs')
  expect(rows).toEqual([{ n: 20 }])
})

test('a row can be written at every step of its offload, waiting for nothing', async () => {
  const { conversationId } = await newConversation(environment)
  const signals = createSignals()
  const daemon = await startDaemon(environment, { signal: signals.signal })
  const client = await environment.app.connect()
  await client.query(`set lock_timeout = '1ms'`)
  try {
    for (const point of [
      'after-claim',
      'after-plan',
      'after-register',
      'after-upload',
      'before-commit',
      'after-commit',
    ] as const) {
      const hold = signals.holdAt(point)
      const id = await insertMessage(environment, conversationId, heavy)
      await hold.reached
      await client.query(`update conversation_messages set metadata = $2 where id = $1`, [id, heavy])
      await client.query(`update conversation_messages set content = 'edited' where id = $1`, [id])
      await insertMessage(environment, conversationId, heavy, client)
      hold.release()
      await drained(environment)
      expect(await rawMetadata(environment, id)).toContain('_ref')
    }
  } finally {
    client.release(true)
    await daemon.stop()
  }
})

test.each(['claim', 'settle', 'expire'])(
  'a %s under way, not yet committed, does not make a write to the same row wait',
  async step => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, heavy)
    const source = await value<number>(environment.admin, 'select id from lighter.sources')
    const claimer = await environment.worker.connect()
    const client = await environment.app.connect()
    try {
      await claimer.query('begin')
      if (step === 'claim') {
        expect((await claimInbox(claimer, [source], 10, 60_000)).entries).toBe(1)
      } else {
        const lease = await leaseRows(claimer, source, [id])
        if (step === 'settle')
          await settle(
            claimer,
            lease,
            [],
            lease.jobs.map(job => conflict(job, { settleMs: 0 })),
            8,
          )
        else await claimer.query('select from lighter.leases for update')
      }
      await client.query(`set lock_timeout = '1ms'`)
      await client.query(`set statement_timeout = '5s'`)
      await client.query('update conversation_messages set metadata = $2 where id = $1', [id, heavy])
    } finally {
      await claimer.query('rollback')
      claimer.release()
      client.release(true)
    }
  },
)

test('a write succeeds though the tables of the queue are locked for reading by a backup', async () => {
  const { conversationId } = await newConversation(environment)
  const backup = await environment.admin.connect()
  try {
    await backup.query('begin isolation level repeatable read')
    await backup.query(
      'lock table lighter.inbox, lighter.waiting, lighter.leases, lighter.daemons, lighter.objects, artifact_refs, conversation_messages in access share mode',
    )
    await insertMessage(environment, conversationId, heavy)
  } finally {
    await backup.query('rollback')
    backup.release()
  }
})

test('the rewrite fires no other trigger of the table where the daemon may keep them quiet', async () => {
  await environment.admin.query(`
    alter table conversation_messages add column updated_at timestamptz;
    create table edits (message_id uuid, by_role name);
    create function note_edit() returns trigger language plpgsql security definer as $$
    begin
      new.updated_at := clock_timestamp();
      insert into edits values (new.id, current_user);
      return new;
    end $$;
    create trigger note_edit before update on conversation_messages for each row execute function note_edit();`)
  const { conversationId } = await newConversation(environment)
  const daemon = await startDaemon(environment)
  const id = await insertMessage(environment, conversationId, heavy)
  await drained(environment)
  await daemon.stop()
  expect(await rawMetadata(environment, id)).toContain('_ref')
  const { rowCount } = await environment.admin.query('select from edits where message_id = $1', [id])
  expect(rowCount).toBe(0)
})

test('where it may not, they fire, and the row is offloaded all the same', async () => {
  await environment.admin.query(`
    create table edits (message_id uuid);
    create function note_edit() returns trigger language plpgsql security definer set search_path = public as $$
    begin
      insert into edits values (new.id);
      return new;
    end $$;
    create trigger note_edit before update on conversation_messages for each row execute function note_edit();
    update lighter.sources set skip_triggers = false`)
  const { conversationId } = await newConversation(environment)
  const daemon = await startDaemon(environment)
  const id = await insertMessage(environment, conversationId, heavy)
  await drained(environment)
  await daemon.stop()
  expect(await rawMetadata(environment, id)).toContain('_ref')
  const { rowCount } = await environment.admin.query('select from edits where message_id = $1', [id])
  expect(rowCount).toBe(1)
})

describe('a trigger of the table that the daemon may not keep quiet', () => {
  const trigger = (body: string) =>
    environment.admin.query(`
      create function meddle() returns trigger language plpgsql as $$ begin ${body} end $$;
      create trigger meddle before update on conversation_messages for each row execute function meddle();
      update lighter.sources set skip_triggers = false`)

  test.for([
    ['takes the pointer away', `new.metadata := new.metadata - 'tool_interactions_ref'; return new;`],
    ['refuses the update', `if old.metadata ? 'tool_interactions' then return null; end if; return new;`],
    ['raises', `raise exception 'no updates here';`],
  ])('and %s leaves the row whole, as a dead letter', async ([, body]) => {
    await trigger(body ?? '')
    const { conversationId } = await newConversation(environment)
    const daemon = await startDaemon(environment, { env: { OFFLOAD_MAX_ATTEMPTS: '1' } })
    const id = await insertMessage(environment, conversationId, heavy)
    await drained(environment)
    await daemon.stop()
    expect(await rawMetadata(environment, id)).toBe(heavy)
    const { rows } = await environment.admin.query<{ last_error: string }>(
      'select last_error from lighter.failed_jobs',
    )
    expect(rows).toEqual([{ last_error: expect.stringMatching(/a trigger of|no updates here/) }])
  })

  test('and adds a key of its own is no obstacle', async () => {
    await trigger(`new.metadata := new.metadata || '{"edited": true}'; return new;`)
    const { conversationId } = await newConversation(environment)
    const daemon = await startDaemon(environment)
    const id = await insertMessage(environment, conversationId, heavy)
    await drained(environment)
    await daemon.stop()
    expect(JSON.parse((await hydrated(environment, id)) ?? '')).toEqual({
      tool_interactions: ['heavy'],
      edited: true,
    })
  })
})
