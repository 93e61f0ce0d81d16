// A login of a test's own, as the daemon's, so that limits and settings of it meet nobody else.
import { onTestFinished } from 'vitest'
import type { TestEnvironment } from './environment.ts'
import { connect, uniqueRole } from './sql.ts'

export interface OwnLogin {
  role: string
  url: string
  /** `alter role … <what>`: from the next connection on. */
  alter(what: string): Promise<void>
  /** Ends its connections. */
  terminate(): Promise<void>
}

export async function createLogin(environment: TestEnvironment): Promise<OwnLogin> {
  const role = uniqueRole('worker')
  await environment.admin.query(`create role ${role} login password 'secret' in role lighter_daemon`)
  onTestFinished(async () => {
    const server = await connect(environment.urls.admin.replace(/[^/]+$/, 'postgres'))
    try {
      await server.query('select pg_terminate_backend(pid) from pg_stat_activity where usename = $1', [role])
      await server.query(`drop role ${role}`)
    } finally {
      await server.end()
    }
  })
  const url = new URL(environment.urls.daemon)
  url.username = role
  url.password = 'secret'
  return {
    role,
    url: url.href,
    alter: async what => void (await environment.admin.query(`alter role ${role} ${what}`)),
    terminate: async () =>
      void (await environment.admin.query(
        'select pg_terminate_backend(pid) from pg_stat_activity where usename = $1',
        [role],
      )),
  }
}
