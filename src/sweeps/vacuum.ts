// Vacuum: after a wave of offloads the tables are full of dead rows, whose space a plain VACUUM makes free for new ones.
// Autovacuum does the same in its time; this does not wait for it. Never FULL, which locks the table.
import { setTimeout } from 'node:timers/promises'
import type pg from 'pg'
import { connectSession } from '../db/prepared.ts'
import { SteadyClient } from '../db/settings.ts'
import { openSession, within } from '../wake/session.ts'
import type { Counts, SweepContext } from './context.ts'

/** Fewer dead rows than this, or a smaller share, are left to autovacuum. */
const worthRows = 10_000
const worthShare = 0.1
/** More writes a second than this, and the hour is a busy one. */
const busyPerSecond = 50
const observeMs = 5000

interface Candidate {
  table: string
  dead: number
  permitted: boolean
  writes: number
}

/** @param asked also in a busy hour */
export async function sweepVacuum(context: SweepContext, asked: boolean): Promise<Counts> {
  const counts: Counts = { tables: 0, dead_rows: 0 }
  // A session of its own: VACUUM takes the time it takes.
  const { config, cut } = openSession(context.sessionUrl, 'pg-lighter vacuum')
  const client = new SteadyClient(config)
  client.on('error', () => undefined)
  try {
    await connectSession(client)
    const before = await candidates(client)
    if (before.length === 0) return counts
    if (!asked && !context.dryRun)
      await setTimeout(observeMs, undefined, { signal: context.signal }).catch(() => undefined)
    const after = new Map((await candidates(client)).map(c => [c.table, c]))
    for (const { table, dead, permitted, writes } of before) {
      if (context.signal.aborted) break
      const perSecond = ((after.get(table)?.writes ?? writes) - writes) / (observeMs / 1000)
      if (!permitted) {
        counts.not_permitted = (counts.not_permitted ?? 0) + 1
        context.log.warn(
          { table, dead },
          `${table} is worth a VACUUM, which lighter_daemon may not run: leave it to autovacuum, or, from Postgres 17 on, grant maintain on ${table} to lighter_daemon`,
        )
      } else if (!asked && perSecond > busyPerSecond) counts.busy = (counts.busy ?? 0) + 1
      else {
        // It does not wait for a lock, and gives no pages back at the end, for which it would need an exclusive one.
        if (!context.dryRun) await client.query(`vacuum (skip_locked, truncate false) ${table}`)
        counts.tables = (counts.tables ?? 0) + 1
        counts.dead_rows = (counts.dead_rows ?? 0) + dead
        context.onProgress(counts)
      }
    }
    return counts
  } finally {
    await within(1000, 'closing', client.end()).catch(() => undefined)
    cut()
  }
}

/** Attached tables of which, or of whose TOAST, much is dead. */
async function candidates(client: pg.Client): Promise<Candidate[]> {
  const { rows } = await client.query<Candidate>(
    `select format('%I.%I', n.nspname, c.relname) as table,
            greatest(s.n_dead_tup, t.n_dead_tup)::float8 as dead,
            pg_has_role(c.relowner, 'usage')
              or case when current_setting('server_version_num')::int >= 170000
                      then has_table_privilege(c.oid, 'maintain') else false end as permitted,
            (s.n_tup_ins + s.n_tup_upd + s.n_tup_del)::float8 as writes
       from (select distinct relation from lighter.sources) x
       join pg_class c on c.oid = x.relation
       join pg_namespace n on n.oid = c.relnamespace
       join pg_stat_all_tables s on s.relid = c.oid
       left join pg_stat_all_tables t on t.relid = c.reltoastrelid
      where s.n_dead_tup >= $1 and s.n_dead_tup >= $2::float8 * (s.n_live_tup + s.n_dead_tup)
         or t.n_dead_tup >= $1 and t.n_dead_tup >= $2::float8 * (t.n_live_tup + t.n_dead_tup)`,
    [worthRows, worthShare],
  )
  return rows
}
