// A backfill waits for replicas, by what they have replayed: their readers see no more than that.
import { setTimeout } from 'node:timers/promises'
import pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import { newConversation } from '../support/environment.ts'
import { environmentOnOwnServer, startOwnPostgres } from '../support/own-server.ts'
import { runCli, startCli } from '../support/process.ts'
import { emptyQueue } from '../support/queue.ts'
import { startReplica } from '../support/replica.ts'
import { value } from '../support/sql.ts'

const rows = 1000

test('a backfill stands still while a replica does not replay, and goes on when it does', {
  timeout: 300_000,
}, async () => {
  const primary = await startOwnPostgres()
  const { environment } = await environmentOnOwnServer(primary)
  onTestFinished(() => environment.close())
  const replica = await startReplica(primary)
  const { conversationId } = await newConversation(environment)
  await environment.app.query(
    `insert into conversation_messages (conversation_id, role, content, metadata)
     select $1, 'assistant', '', '{"tool_interactions": [1]}' from generate_series(1, $2::int)`,
    [conversationId, rows],
  )
  await emptyQueue(environment)
  await replica.caughtUp()
  const reader = new pg.Client({ connectionString: replica.postgres.url() })
  await reader.connect()
  onTestFinished(() => reader.end())
  const jobs = () => value<number>(environment.admin, 'select count(*)::int from lighter.jobs')
  const args = ['backfill', '--max-lag', '1', '--rate', '100', '--restart', '--json']
  const finished = { tables: [expect.objectContaining({ outcome: 'done', queued: rows })] }

  // Who may not see the replicas does not wait for them, as the documentation says.
  await reader.query('select pg_wal_replay_pause()')
  const blind = await runCli(args, { env: environment.env })
  expect(JSON.parse(blind.stdout)).toMatchObject(finished)
  await emptyQueue(environment)
  await reader.query('select pg_wal_replay_resume()')
  await replica.caughtUp()

  await environment.admin.query(`grant pg_monitor to ${new URL(environment.urls.daemon).username}`)
  const backfill = startCli(args, { env: environment.env })
  await expect.poll(jobs, { timeout: 60_000, interval: 200 }).toBeGreaterThan(0)
  await reader.query('select pg_wal_replay_pause()')
  const lag = () =>
    value<number | null>(
      environment.admin,
      'select extract(epoch from max(replay_lag))::float8 from pg_stat_replication',
    )
  await expect.poll(lag, { timeout: 60_000, interval: 200 }).toBeGreaterThan(1)
  // It looks every two seconds; from then on nothing comes.
  let before = -1
  await expect
    .poll(
      async () => {
        const last = before
        before = await jobs()
        return before === last
      },
      { timeout: 60_000, interval: 4000 },
    )
    .toBe(true)
  expect(before).toBeLessThan(rows)
  await setTimeout(3000)
  expect([backfill.hasEnded(), await jobs()]).toEqual([false, before])
  // What it writes is flushed there all the while: that is not what it waits for.
  expect(
    await value(
      environment.admin,
      'select flush_lsn > replay_lsn and flush_lag < replay_lag from pg_stat_replication',
    ),
  ).toBe(true)
  await reader.query('select pg_wal_replay_resume()')
  const { stdout, stderr } = await backfill.ended
  expect([stderr, JSON.parse(stdout)]).toMatchObject(['', finished])
  await replica.caughtUp()
  const onReplica = new pg.Client({
    connectionString: replica.postgres.url({ database: environment.database }),
  })
  await onReplica.connect()
  onTestFinished(() => onReplica.end())
  expect(await value(onReplica, 'select count(*)::int from lighter.jobs')).toBe(rows)
})
