// A database on the embedded server, ready for the daemon: migrated, with logins of least privilege.
import pg from 'pg'
import { migrate } from '../db/migrate.ts'
import type { RunningPostgres } from './postgres.ts'

export interface EmbeddedUrls {
  /** Superuser: owner of everything. */
  admin: string
  /** As the daemon should log in: a member of lighter_daemon and nothing else. */
  daemon: string
  /** As an application would: may write the example tables and knows nothing of pg-lighter. */
  application: string
}

const daemonLogin = { user: 'lighter_worker', password: 'lighter-worker' }
const applicationLogin = { user: 'example_app', password: 'example-app' }

/** Creates the database if need be, migrates it, and makes the two logins. The server listens on loopback only. */
export async function prepareEmbeddedDatabase(
  server: pg.Client,
  postgres: RunningPostgres,
  database: string,
  options: { withExampleTables: boolean },
): Promise<EmbeddedUrls> {
  const exists = await server.query('select from pg_database where datname = $1', [database])
  if (exists.rowCount === 0)
    await server.query(`create database ${pg.escapeIdentifier(database)} encoding 'UTF8' template template0`)
  const admin = postgres.url({ database })
  const client = new pg.Client({ connectionString: admin })
  await client.connect()
  try {
    await migrate(client, options)
    for (const { user, password } of [daemonLogin, applicationLogin]) {
      const login = pg.escapeIdentifier(user)
      const known = await client.query('select from pg_roles where rolname = $1', [user])
      // Two test databases may be prepared at once: the loser of the race finds the login made.
      if (known.rowCount === 0) {
        await client
          .query(`create role ${login} login password ${pg.escapeLiteral(password)}`)
          .catch(error => {
            if (!(error instanceof pg.DatabaseError && (error.code === '42710' || error.code === '23505')))
              throw error
          })
      }
    }
    await client.query(`select pg_advisory_lock(7809632190530)`)
    await client.query(`grant lighter_daemon to ${pg.escapeIdentifier(daemonLogin.user)}`)
    await client.query(`select pg_advisory_unlock(7809632190530)`)
    if (options.withExampleTables) {
      await client.query(
        `grant select, insert, update, delete on public.conversations, public.conversation_messages to ${pg.escapeIdentifier(applicationLogin.user)}`,
      )
    }
  } finally {
    await client.end()
  }
  return {
    admin,
    daemon: postgres.url({ database, ...daemonLogin }),
    application: postgres.url({ database, ...applicationLogin }),
  }
}
