// LangGraph's Postgres checkpointer: composite keys of texts, a document of jsonb, bytes of msgpack, no tenant.
import { expect } from 'vitest'
import type { Application, Shape } from '../shape.ts'
import { bytesOf, prose, timeOf } from '../text.ts'

const checkpointOf = (thread: string, step: number, bytes: number) => ({
  v: 4,
  ts: timeOf(step),
  id: `1f0-${step}`,
  // As long as LangGraph writes them, of a graph with a dozen channels.
  channel_versions: {
    messages: `0000.${step}`,
    ...Object.fromEntries(
      Array.from({ length: 11 }, (_, n) => [
        `branch:to:node-${n}`,
        `${String(step).padStart(32, '0')}.0.4789321903${n}`,
      ]),
    ),
  },
  versions_seen: { __input__: {}, agent: { messages: `0000.${step}` } },
  channel_values: { plan: prose(`${thread} ${step}`, bytes), step },
  pending_sends: [],
})

async function putCheckpoint(app: Application, thread: string, step: number, bytes: number): Promise<void> {
  await app.query(
    `insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
     values ($1, '', $2, $3, 'json', $4, $5)
     on conflict (thread_id, checkpoint_ns, checkpoint_id) do update set checkpoint = excluded.checkpoint, metadata = excluded.metadata`,
    [
      thread,
      `1f0-${step}`,
      step > 0 ? `1f0-${step - 1}` : null,
      checkpointOf(thread, step, bytes),
      { source: 'loop', step },
    ],
  )
}

const putBlob = (app: Application, thread: string, step: number, bytes: number) =>
  app.query(
    `insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
     values ($1, '', 'messages', $2, $3, $4) on conflict (thread_id, checkpoint_ns, channel, version) do nothing`,
    [
      thread,
      `0000.${step}`,
      bytes > 0 ? 'msgpack' : 'empty',
      bytes > 0 ? bytesOf(`${thread} blob ${step}`, bytes) : null,
    ],
  )

const putWrite = (
  app: Application,
  thread: string,
  step: number,
  idx: number,
  bytes: number,
  seed = 'write',
) =>
  app.query(
    `insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob)
     values ($1, '', $2, 'task-1', $3, 'messages', 'msgpack', $4)
     on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
     do update set channel = excluded.channel, type = excluded.type, blob = excluded.blob`,
    [thread, `1f0-${step}`, idx, bytesOf(`${thread} ${seed} ${step} ${idx}`, bytes)],
  )

async function runThread(app: Application, thread: string, steps: number): Promise<void> {
  for (let step = 0; step < steps; step++) {
    const bytes = step % 2 === 0 ? 600 + 900 * step : 11_000 + step * 4000
    await putCheckpoint(app, thread, step, bytes)
    await putBlob(app, thread, step, step === 4 ? 0 : bytes)
    await putWrite(app, thread, step, 0, bytes)
    await putWrite(app, thread, step, 1, 40)
  }
}

const odd = ['a","b', `it's [1,2]`, '["x","y"]', 'line\nbreak\ttab\u001f\u0001\u007f', '\\', '漢字 🚢', '']

export const langgraph: Shape = {
  name: 'LangGraph checkpoints',
  tables: `
    create table checkpoints (
      thread_id text not null, checkpoint_ns text not null default '', checkpoint_id text not null, parent_checkpoint_id text,
      type text, checkpoint jsonb not null, metadata jsonb not null default '{}',
      primary key (thread_id, checkpoint_ns, checkpoint_id));
    create table checkpoint_blobs (
      thread_id text not null, checkpoint_ns text not null default '', channel text not null, version text not null,
      type text not null, blob bytea,
      primary key (thread_id, checkpoint_ns, channel, version));
    create table checkpoint_writes (
      thread_id text not null, checkpoint_ns text not null default '', checkpoint_id text not null, task_id text not null,
      idx integer not null, channel text not null, type text, blob bytea not null,
      primary key (thread_id, checkpoint_ns, checkpoint_id, task_id, idx))`,
  tenants: { checkpoints: null, checkpoint_blobs: null, checkpoint_writes: null },
  fill: async app => {
    await runThread(app, 'thread-old', 8)
    await runThread(app, 'thread-kept', 6)
  },
  writes: {
    'a thread runs': (app, round) => runThread(app, `thread-${round}`, 6),
    'a checkpoint is written again': async (app, round) => {
      await putCheckpoint(app, `thread-${round}`, 1, 24_000)
      await putCheckpoint(app, `thread-${round}`, 3, 300)
      await putCheckpoint(app, 'thread-old', 2, 15_000)
    },
    'pending writes are put again': async (app, round) => {
      await putWrite(app, 'thread-old', 1, 0, 20_000 + round, 'again')
      await putWrite(app, 'thread-old', 3, 0, 100, 'again')
      await putBlob(app, 'thread-old', 1, 30_000)
    },
    'the metadata of a run is changed': async (app, round) => {
      await app.query(
        `update checkpoints set metadata = metadata || $1 where thread_id = 'thread-old' and checkpoint_id = '1f0-5'`,
        [{ round }],
      )
    },
    'a thread is copied': async (app, round) => {
      for (const table of ['checkpoints', 'checkpoint_blobs', 'checkpoint_writes']) {
        const columns = (
          await app.query<{ name: string }>(
            `select attname::text as name from pg_attribute where attrelid = $1::regclass and attnum > 1 and not attisdropped order by attnum`,
            [table],
          )
        )
          .map(({ name }) => name)
          .join(', ')
        await app.query(
          `insert into ${table} (thread_id, ${columns}) select 'copy-${round}', ${columns} from ${table} where thread_id = 'thread-kept'`,
        )
      }
    },
    'a thread is deleted': async (app, round) => {
      for (const table of ['checkpoint_writes', 'checkpoint_blobs', 'checkpoints'])
        await app.query(`delete from ${table} where thread_id = any ($1)`, [
          [`copy-${round}`, `thread-${round - 1}`],
        ])
    },
  },
  reads: {
    'the versions of the channels of each checkpoint, by which its blobs are found': `select thread_id, checkpoint_id, key, value from checkpoints cross join jsonb_each_text(checkpoint -> 'channel_versions') order by 1, 2, 3`,
    'the newest checkpoint of each thread': `select distinct on (thread_id) thread_id, checkpoint_id, parent_checkpoint_id, metadata, checkpoint ->> 'ts' as ts from checkpoints order by thread_id, checkpoint_id desc`,
    'blobs by their channel and version': `select thread_id, channel, version, type from checkpoint_blobs order by 1, 2, 3`,
  },
  attack: {
    name: 'keys with quotes, commas, brackets and control characters',
    run: async zoo => {
      await zoo.write(async app => {
        for (const thread of odd) {
          await putCheckpoint(app, thread, 1, 12_000)
          await putBlob(app, thread, 1, 12_000)
          await putWrite(app, thread, 1, 0, 12_000)
        }
        // One key in two tables' worth of texts: what stands between them must tell.
        await app.query(
          `insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
           values ('a', 'b","c', 'd', 'e', 'msgpack', $1), ('a","b', 'c', 'd', 'e', 'msgpack', $2)`,
          [bytesOf('one', 9000), bytesOf('other', 9000)],
        )
      })
      await zoo.settled()
      for (const thread of odd)
        expect(await zoo.app.read('checkpoints', 'checkpoint', thread, '', '1f0-1')).toContain(
          'channel_values',
        )
      expect(
        await zoo.app.query(
          `select thread_id from checkpoints where thread_id = any ($1) and checkpoint ? 'channel_values'`,
          [odd],
        ),
      ).toEqual([])
    },
  },
}
