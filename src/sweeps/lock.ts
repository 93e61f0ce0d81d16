// One process at a time runs a sweep, a backfill of a table, and the like: a row of lighter.locks that counts while
// its session lives. No advisory lock, which any login could take; and no lock of a transaction, which would be open
// for hours.
import { randomBytes } from 'node:crypto'
import { hostname } from 'node:os'
import { setTimeout as delay } from 'node:timers/promises'
import type pg from 'pg'
import { connectSession, isSession } from '../db/prepared.ts'
import { SteadyClient } from '../db/settings.ts'
import type { ConnectionUrl } from '../db/url.ts'
import { LighterError } from '../errors.ts'
import { keepsSession, noticeDeadClient, openSession, within } from '../wake/session.ts'

/** Held by one sweep at a time, of whatever name, while it advances the epoch. */
const epochLock = 'epoch'

const answerMs = 5000
const epochWaitMs = 120_000
const epochPollMs = 100

export interface SweepLock {
  /**
   * Runs `work` while no other sweep, of whatever name, is at the same point.
   * @throws {LighterError} `busy`, naming the holder, when that takes more than two minutes
   */
  exclusively<T>(work: () => Promise<T>): Promise<T>
  /** False once the connection, and with it the lock, was lost. */
  isHeld(): boolean
  release(): Promise<void>
}

/** The lock, or who has it. */
export type LockAttempt = { lock: SweepLock; holder: null } | { lock: null; holder: string }

/**
 * Takes the lock of a sweep, or says who has it.
 * @param url must reach Postgres directly, or through a pooler in session mode
 * @throws {LighterError} `no_session` when it does not
 */
export async function takeSweepLock(url: ConnectionUrl, name: string): Promise<LockAttempt> {
  const { config, cut } = openSession(url, 'pg-lighter lock')
  const client = new SteadyClient({ ...config, query_timeout: answerMs })
  const tag = tagOf(name)
  let held = true
  client.on('error', () => {
    held = false
    cut()
  })
  const release = async () => {
    const wasHeld = held
    held = false
    if (wasHeld) await forget(client, tag).catch(() => undefined)
    await within(1000, 'closing', client.end()).catch(() => undefined)
    cut()
  }
  try {
    await connectSession(client)
    await requireSession(client, url)
    await noticeDeadClient(client)
    await client.query(
      `select set_config('application_name', $1, false), set_config('lock_timeout', '2s', false)`,
      [tag],
    )
    const holder = await take(client, name, tag)
    if (holder !== null) {
      await release()
      return { lock: null, holder }
    }
  } catch (error) {
    await release()
    throw error
  }
  return {
    holder: null,
    lock: {
      exclusively: async work => {
        await waitFor(client, epochLock, tag)
        try {
          return await work()
        } finally {
          await client.query('delete from lighter.locks where name = $1 and tag = $2', [epochLock, tag])
        }
      },
      isHeld: () => held,
      release,
    },
  }
}

/** @returns null if it is ours now, else who has it */
async function take(client: pg.Client, name: string, tag: string): Promise<string | null> {
  // Whoever comes second waits for the first one's statement, and then sees its session.
  const { rowCount } = await client.query(
    `insert into lighter.locks as l (name, tag, pid, login, place)
     select $1, $2, pg_backend_pid(), (select oid from pg_roles where rolname = session_user), $3
         on conflict (name) do update
        set tag = excluded.tag, pid = excluded.pid, login = excluded.login, place = excluded.place, since = clock_timestamp()
      -- As lighter.held_locks, of the row as it is by now: the view would read the one that was there when the statement
      -- began, and a lock that somebody has taken since would seem to be free.
      where not exists (select from pg_stat_activity a
                         where a.pid = l.pid and a.usesysid = l.login and a.application_name = l.tag
                           and a.datname = current_database())`,
    [name, tag, `${hostname()}:${process.pid}`],
  )
  if (rowCount === 1) return null
  const { rows } = await client.query<{ holder: string }>(
    `select format('pid %s, user %s, on %s, since %s', pid, login, place, to_char(since, 'YYYY-MM-DD HH24:MI:SSOF')) as holder
       from lighter.held_locks where name = $1`,
    [name],
  )
  return rows[0]?.holder ?? 'it has just ended'
}

/** Whoever has it talks to the store, which may take its time. */
async function waitFor(client: pg.Client, name: string, tag: string): Promise<void> {
  const until = performance.now() + epochWaitMs
  for (;;) {
    const holder = await take(client, name, tag)
    if (holder === null) return
    if (performance.now() > until) {
      throw new LighterError('busy', `another sweep has held the lock "${name}" for long: ${holder}`, {
        hint: 'Run it again later, or end that session: select pg_terminate_backend(<pid>);',
      })
    }
    await delay(epochPollMs)
  }
}

/** What it holds, and what others left that died: of their names some are never used again. */
async function forget(client: pg.Client, tag: string): Promise<void> {
  await client.query(
    `delete from lighter.locks l
      where l.tag = $1 or not exists (select from lighter.held_locks h where h.name = l.name and h.tag = l.tag)`,
    [tag],
  )
}

/** Postgres replaces what is not printable ASCII in an application_name, and cuts off what is beyond 63 bytes. */
function tagOf(name: string): string {
  const readable = name.replace(/[^\x20-\x7e]/g, '?').slice(0, 30)
  return `pg-lighter ${readable} ${randomBytes(10).toString('hex')}`
}

async function requireSession(client: pg.Client, url: ConnectionUrl): Promise<void> {
  if ((await isSession(client)) || (await hearsAnother(client, url))) return
  throw new LighterError(
    'no_session',
    'sweeps need a session of their own, and a pooler in transaction mode is in between',
    {
      hint: 'Set LISTEN_DATABASE_URL to a direct connection, or to a pooler in session mode.',
    },
  )
}

/** Behind a pooler: whether it is one in session mode. */
async function hearsAnother(client: pg.Client, url: ConnectionUrl): Promise<boolean> {
  const { config, cut } = openSession(url, 'pg-lighter probe')
  const sender = new SteadyClient({ ...config, query_timeout: answerMs })
  sender.on('error', cut)
  try {
    await connectSession(sender)
    return await keepsSession(client, sender)
  } finally {
    await within(1000, 'closing', sender.end()).catch(() => undefined)
    cut()
  }
}
