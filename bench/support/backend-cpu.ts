// CPU of one Postgres backend, by the kernel's own count: it does not hold what others on the machine do.
import { readFile } from 'node:fs/promises'
import type pg from 'pg'

/** How many microseconds of CPU the session's backend spends on `work`. Of a server on this machine only. */
export async function backendCpu(client: pg.ClientBase, work: () => Promise<void>): Promise<number> {
  const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid')
  const spent = async () => {
    const [nanoseconds] = (await readFile(`/proc/${rows[0]?.pid}/schedstat`, 'utf8')).split(' ')
    return Number(nanoseconds) / 1000
  }
  const before = await spent()
  await work()
  return (await spent()) - before
}
