// A streaming replica of an embedded server: a copy of its files, fed by its write-ahead log, asynchronously.
import { cp, writeFile } from 'node:fs/promises'
import path from 'node:path'
import pg from 'pg'
import type { RunningPostgres } from '../../src/embedded/postgres.ts'
import { until } from './environment.ts'
import { startOwnPostgres, temporaryDir } from './own-server.ts'

export interface Replica {
  readonly postgres: RunningPostgres
  /** Waits until it has replayed what the primary has written so far. */
  caughtUp(): Promise<void>
  /** From now on it is a primary of its own, and takes writes. */
  promote(): Promise<void>
}

/** What a base backup leaves out: files of the running server, and what is in these folders. */
const leftOut =
  /^(postmaster\.(pid|opts)|(pg_wal|pg_replslot|pg_dynshmem|pg_notify|pg_stat_tmp|pg_subtrans)\/.*)$/

/**
 * Copies the primary while it runs, and starts the copy in recovery. It accepts readers.
 * @param options.via where it gets the write-ahead log, if not straight from the primary: a proxy that can be cut
 */
export async function startReplica(
  primary: RunningPostgres,
  options: { via?: (url: string) => string; settings?: Record<string, string> } = {},
): Promise<Replica> {
  const dataDir = path.join(await temporaryDir('replica'), 'data')
  await copyServer(primary, dataDir, (options.via ?? (url => url))(primary.url()))
  const postgres = await startOwnPostgres(options.settings, dataDir)
  const ask = <R extends pg.QueryResultRow>(server: RunningPostgres, sql: string, values: unknown[] = []) =>
    withSuperuser(server, async client => (await client.query<R>(sql, values)).rows)
  return {
    postgres,
    caughtUp: async () => {
      const [written] = await ask<{ lsn: string }>(primary, 'select pg_current_wal_flush_lsn()::text as lsn')
      await until(async () => {
        const [replayed] = await ask<{ done: boolean }>(
          postgres,
          'select pg_last_wal_replay_lsn() >= $1::pg_lsn as done',
          [written?.lsn],
        )
        return replayed?.done === true
      }, 'the replica has caught up')
    },
    promote: async () => {
      const [promoted] = await ask<{ done: boolean }>(postgres, 'select pg_promote(true, 60) as done')
      if (promoted?.done !== true) throw new Error('the replica was not promoted')
    },
  }
}

async function copyServer(primary: RunningPostgres, dataDir: string, source: string): Promise<void> {
  await withSuperuser(primary, async client => {
    // What is written from now on is kept, without a slot that would keep it for ever.
    await client.query(`alter system set wal_keep_size = '256MB'`)
    await client.query('select pg_reload_conf()')
    await client.query(`select pg_backup_start('replica', true)`)
    await cp(primary.dataDir, dataDir, {
      recursive: true,
      filter: file => !leftOut.test(path.relative(primary.dataDir, file)),
    })
    const { rows } = await client.query<{ labelfile: string }>('select labelfile from pg_backup_stop(false)')
    await writeFile(path.join(dataDir, 'backup_label'), rows[0]?.labelfile ?? '')
  })
  const from = new URL(source)
  const conninfo = `host=${from.hostname} port=${from.port} user=${from.username} password=${decodeURIComponent(from.password)} application_name=replica`
  await writeFile(path.join(dataDir, 'standby.signal'), '')
  await writeFile(path.join(dataDir, 'postgresql.auto.conf'), `primary_conninfo = '${conninfo}'\n`)
}

async function withSuperuser<T>(
  server: RunningPostgres,
  work: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const client = new pg.Client({ connectionString: server.url() })
  client.on('error', () => undefined)
  await client.connect()
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}
