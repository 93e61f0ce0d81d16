// The product as its users have it: SQL, the command line, HTTP. Tests that use only this, the fixtures of
// environment.ts and api.ts outlive a change of tables and modules.
import pg from 'pg'
import { expect } from 'vitest'
import { type TestEnvironment, until } from './environment.ts'
import { type CliOptions, type Finished, runCli } from './process.ts'

/** Runs `lighter <args>` on the environment's database and prefix, to its end. */
export function lighter(
  environment: TestEnvironment,
  args: string[],
  options: CliOptions = {},
): Promise<Finished> {
  return runCli(args, { ...options, env: { ...environment.env, ...options.env } })
}

/** As `lighter`; the command must succeed. Returns its standard output. */
export async function lighterOk(
  environment: TestEnvironment,
  args: string[],
  options: CliOptions = {},
): Promise<string> {
  const { code, stdout, stderr } = await lighter(environment, args, options)
  expect(code, `lighter ${args.join(' ')}: ${stderr}`).toBe(0)
  return stdout
}

/** Creates a table as the owner, which the application's login may read and write. `definition` is as in CREATE TABLE. */
export async function createTable(
  environment: TestEnvironment,
  table: string,
  definition: string,
): Promise<void> {
  await environment.admin.query(`create table ${table} ${definition}`)
  const login = new URL(environment.urls.application).username
  await environment.admin.query(
    `grant select, insert, update, delete on ${table} to ${pg.escapeIdentifier(decodeURIComponent(login))}`,
  )
}

/** Attaches a table by SQL, as its owner. `options` are named arguments of lighter.attach in SQL. */
export async function attach(
  environment: TestEnvironment,
  table: string,
  column = 'metadata',
  options: Record<string, string> = {},
): Promise<void> {
  const named = Object.entries(options).map(([name, value]) => `, ${name} => ${value}`)
  await environment.admin.query(`select lighter.attach($1::regclass, $2${named.join('')})`, [table, column])
}

/** Waits until nothing is queued: every row is offloaded, was left alone, or is a dead letter. Needs a daemon. */
export function settled(environment: TestEnvironment, timeoutMs = 30_000): Promise<void> {
  return until(
    async () => {
      const { rows } = await environment.admin.query<{ n: string }>(
        'select coalesce(sum(depth), 0)::text as n from lighter.queue_health',
      )
      return rows[0]?.n === '0'
    },
    'nothing is queued',
    timeoutMs,
  )
}

/** The text of one row's column as `lighter hydrate` prints it. */
export async function hydratedByCli(
  environment: TestEnvironment,
  table: string,
  key: string,
  args: string[] = [],
  options: CliOptions = {},
): Promise<string> {
  return (await lighterOk(environment, ['hydrate', key, '--table', table, ...args], options)).replace(
    /\n$/,
    '',
  )
}
