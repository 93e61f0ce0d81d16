// A database on the embedded server, or another one, ready for the daemon: migrated, with logins of least privilege.
import { setTimeout as delay } from 'node:timers/promises'
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

interface Login {
  user: string
  password: string
}

export interface Logins {
  daemon: Login
  application: Login
}

/** For servers that listen on loopback only. */
const knownLogins: Logins = {
  daemon: { user: 'lighter_worker', password: 'lighter-worker' },
  application: { user: 'example_app', password: 'example-app' },
}

/**
 * Creates the database if need be, migrates it, lets rows leave as soon as they are written, and makes the two logins; one that
 * is there keeps its password.
 */
export async function prepareEmbeddedDatabase(
  server: pg.Client,
  postgres: Pick<RunningPostgres, 'url'>,
  database: string,
  { logins = knownLogins, ...options }: { withExampleTables: boolean; logins?: Logins },
): Promise<EmbeddedUrls> {
  const exists = await server.query('select from pg_database where datname = $1', [database])
  if (exists.rowCount === 0)
    await server.query(`create database ${pg.escapeIdentifier(database)} encoding 'UTF8' template template0`)
  const admin = postgres.url({ database })
  const client = new pg.Client({ connectionString: admin })
  await client.connect()
  try {
    await migrate(client, options)
    // Whoever tries it wants to see rows leave.
    await client.query(`select lighter.set_defaults(settle_for => '0', max_wait => '0')`)
    for (const { user, password } of [logins.daemon, logins.application]) {
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
    await grantDaemonRole(client, logins.daemon.user)
    if (options.withExampleTables) {
      await client.query(
        `grant select, insert, update, delete on public.conversations, public.conversation_messages to ${pg.escapeIdentifier(logins.application.user)}`,
      )
    }
  } finally {
    await client.end()
  }
  return {
    admin,
    daemon: postgres.url({ database, ...logins.daemon }),
    application: postgres.url({ database, ...logins.application }),
  }
}

/** Roles are the server's: of two databases that are prepared at once, one may find the entry being written. */
async function grantDaemonRole(client: pg.Client, login: string): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await client.query(`grant lighter_daemon to ${pg.escapeIdentifier(login)}`)
      return
    } catch (error) {
      const concurrently = error instanceof pg.DatabaseError && /^(XX000|23505)$/.test(error.code ?? '')
      if (!concurrently || attempt === 5) throw error
      await delay(100)
    }
  }
}
