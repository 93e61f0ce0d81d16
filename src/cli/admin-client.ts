// A connection for commands that change the schema, as the owner of the tables.
import type pg from 'pg'
import { loadAdminDatabaseUrl } from '../config.ts'
import { SteadyClient, setForOperatorSql } from '../db/settings.ts'

/** Runs `work` on one connection as ADMIN_DATABASE_URL (else DATABASE_URL); notices go to standard error. */
export async function withAdminClient<T>(
  work: (client: pg.Client) => Promise<T>,
  url: string = loadAdminDatabaseUrl(process.env),
): Promise<T> {
  const client = new SteadyClient({
    connectionString: url,
    application_name: 'lighter',
    connectionTimeoutMillis: 10_000,
  })
  client.on('notice', notice => {
    // What our functions say, not Postgres's own remarks such as "does not exist, skipping".
    if (notice.routine === 'exec_stmt_raise') process.stderr.write(`${notice.message}\n`)
  })
  client.on('error', () => undefined) // a lost connection fails the statement that is waiting, which reports it
  await client.connect()
  // Through a pooler in transaction mode nothing that migrate and attach need would hold.
  await client.query(setForOperatorSql)
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}
