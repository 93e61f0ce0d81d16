// A connection for commands that change the schema, as the owner of the tables.
import pg from 'pg'
import { loadAdminDatabaseUrl } from '../config.ts'

/** Runs `work` on one connection as ADMIN_DATABASE_URL (else DATABASE_URL); notices go to standard error. */
export async function withAdminClient<T>(work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({
    connectionString: loadAdminDatabaseUrl(process.env),
    application_name: 'lighter',
    connectionTimeoutMillis: 10_000,
  })
  client.on('notice', notice => process.stderr.write(`${notice.message}\n`))
  await client.connect()
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}
