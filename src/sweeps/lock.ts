// One daemon at a time runs a sweep: a session advisory lock, which goes with its connection.
import type pg from 'pg'
import { connectSession, isSession } from '../db/prepared.ts'
import { SteadyClient } from '../db/settings.ts'
import type { ConnectionUrl } from '../db/url.ts'
import { LighterError } from '../errors.ts'
import { keepsSession, noticeDeadClient, openSession, within } from '../wake/session.ts'

/** With the sweep's name as the second key. */
const lockSpace = 78096
const epochLockKey = '7809632190530'

const answerMs = 5000
const epochWaitMs = 120_000

export interface SweepLock {
  /** Runs `work` while no other sweep, of whatever name, is at the same point. */
  exclusively<T>(work: () => Promise<T>): Promise<T>
  /** False once the connection, and with it the lock, was lost. */
  isHeld(): boolean
  release(): Promise<void>
}

/**
 * Takes the lock of a sweep, or returns null when somebody else has it.
 * @param url must reach Postgres directly, or through a pooler in session mode
 * @throws {LighterError} `no_session` when it does not
 */
export async function takeSweepLock(url: ConnectionUrl, sweep: string): Promise<SweepLock | null> {
  const { config, cut } = openSession(url, `pg-lighter sweep ${sweep}`)
  const client = new SteadyClient({ ...config, query_timeout: answerMs })
  let held = true
  client.on('error', () => {
    held = false
    cut()
  })
  const release = async () => {
    held = false
    await within(1000, 'closing', client.end()).catch(() => undefined)
    cut()
  }
  try {
    await connectSession(client)
    if (!(await isSession(client)) && !(await hearsAnother(client, url))) {
      throw new LighterError(
        'no_session',
        'sweeps need a session of their own, and a pooler in transaction mode is in between',
        {
          hint: 'Set LISTEN_DATABASE_URL to a direct connection, or to a pooler in session mode.',
        },
      )
    }
    await noticeDeadClient(client)
    const { rows } = await client.query<{ taken: boolean }>(
      'select pg_try_advisory_lock($1, hashtext($2)) as taken',
      [lockSpace, sweep],
    )
    if (rows[0]?.taken !== true) {
      await release()
      return null
    }
  } catch (error) {
    await release()
    throw error
  }
  return {
    exclusively: async work => {
      // Whoever has it talks to the store, which may take its time.
      const wait: pg.QueryConfig & { query_timeout: number } = {
        text: `select pg_advisory_lock(${epochLockKey})`,
        query_timeout: epochWaitMs,
      }
      await client.query(wait)
      try {
        return await work()
      } finally {
        await client.query(`select pg_advisory_unlock(${epochLockKey})`)
      }
    },
    isHeld: () => held,
    release,
  }
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
