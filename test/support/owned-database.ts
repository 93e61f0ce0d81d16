// A database as an application has it before pg-lighter: its owner is no superuser.
import pg from 'pg'
import { migrate } from '../../src/db/migrate.ts'
import { createEnvironment } from './environment.ts'
import { connect, ensureSupabaseRoles, grantLikeSupabase, uniqueRole } from './sql.ts'

/** With Supabase's roles. */
export async function openOwnedDatabase() {
  const environment = await createEnvironment({ empty: true })
  const owner = uniqueRole('app_owner')
  await ensureSupabaseRoles(environment.admin)
  await environment.admin.query(`create role ${owner} login password 'owner' createrole`)
  await environment.admin.query(`alter database ${environment.database} owner to ${owner}`)
  await grantLikeSupabase(environment.admin, owner)
  const url = new URL(environment.urls.admin)
  url.username = owner
  url.password = 'owner'
  const pool = new pg.Pool({ connectionString: url.href, max: 4 })
  pool.on('error', () => undefined)
  return {
    environment,
    owner,
    pool,
    url: url.href,
    /** Rows leave as soon as they are written. */
    migrate: async () => {
      const client = await connect(url.href)
      try {
        const plan = await migrate(client)
        await client.query(`select lighter.set_defaults(settle_for => '0', max_wait => '0')`)
        return plan
      } finally {
        await client.end()
      }
    },
    close: async () => {
      await pool.end()
      const server = new URL(environment.urls.admin)
      server.pathname = '/postgres'
      await environment.close()
      const admin = await connect(server.href)
      await admin.query(`drop role ${owner}`)
      await admin.end()
    },
  }
}

export type OwnedDatabase = Awaited<ReturnType<typeof openOwnedDatabase>>
