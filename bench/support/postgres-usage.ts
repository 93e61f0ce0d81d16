// What a Postgres server on this machine spends: CPU of all its processes, also of those that have ended, and WAL.
import { readdir, readFile } from 'node:fs/promises'
import type pg from 'pg'

export interface PostgresUsage {
  cpuMs: number
  walBytes: number
}

/** The kernel counts in hundredths of a second: USER_HZ, see proc(5). */
const msPerTick = 10

/** Since the server began; take the difference of two. */
export async function postgresUsage(admin: pg.Pool): Promise<PostgresUsage> {
  const { rows } = await admin.query<{ pid: number; wal: number }>(
    `select pg_backend_pid() as pid, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8 as wal`,
  )
  const postmaster = (await statOf(rows[0]?.pid ?? 0))[1]
  let ticks = 0
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const fields = await statOf(Number(name))
    if (name !== postmaster && fields[1] !== postmaster) continue
    ticks += Number(fields[11]) + Number(fields[12])
    if (name === postmaster) ticks += Number(fields[13]) + Number(fields[14])
  }
  return { cpuMs: ticks * msPerTick, walBytes: rows[0]?.wal ?? 0 }
}

/** From `state` on: parent, …, utime, stime, and the same of children that have ended. Empty of a process that has ended. */
async function statOf(pid: number): Promise<string[]> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')
  // Behind the name, which may have spaces.
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')
}
