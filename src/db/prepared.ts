// Prepared statements, where they hold. The large statements of a batch take Postgres 3 to 6 ms to plan, longer than
// to run when the batch is one row; prepared under a name they are planned once a connection. The general plan is also the
// one that is wanted: index look-ups one after the other, and nothing that holds documents is hashed or sorted. Behind a pooler in
// transaction mode a name may be unknown to the next server connection, so only proven sessions use names.
import { createHash } from 'node:crypto'
import type pg from 'pg'
import { SteadyClient, setLocalSteadySql, steadySettings } from './settings.ts'

/** With `prepare`, planned once a connection where that is safe. Its text must be one of a small set. */
export interface Statement extends pg.QueryConfig {
  prepare?: boolean
}

const sessions = new WeakSet<object>()

/** A client that gives statements with `prepare` a name, once `proveSession` has found it a session. */
export class PreparingClient extends SteadyClient {
  // The overloads of the driver's query can not be repeated by an override; the arguments pass through as they are.
  // biome-ignore lint/suspicious/noExplicitAny: see above
  override query(...args: any[]): any {
    const [first, ...others] = args
    if (!isStatement(first) || first.prepare !== true || !sessions.has(this)) {
      return Reflect.apply(super.query, this, args)
    }
    return Reflect.apply(super.query, this, [{ ...first, ...named(first.text) }, ...others])
  }
}

function isStatement(value: unknown): value is Statement {
  return typeof value === 'object' && value !== null && 'text' in value
}

interface Named {
  text: string
  name: string
}

const names = new Map<string, Named>()
/** More statements than this are not prepared anew under a remembered name; it bounds this map, not the server. */
const maxNames = 1000

/** One text, one name, for ever: a table that is attached anew in another way has another text. */
function named(text: string): Named {
  const known = names.get(text)
  if (known !== undefined) return known
  const hash = createHash('sha256').update(text).digest('hex').slice(0, 24)
  const fresh = { text: withHiddenLengths(text), name: `lighter_${hash}` }
  if (names.size < maxNames) names.set(text, fresh)
  return fresh
}

/**
 * The same statement, with the lengths of arrays out of the planner's sight. It plans a statement anew for each
 * execution as long as that looks cheaper than the general plan, and an array of one row does: the general plan
 * reckons with ten. (plancache.c, `choose_custom_plan`; arrayfuncs.c, `array_unnest_support`.)
 */
function withHiddenLengths(text: string): string {
  return text.replace(/(?<=unnest\([^)]*)\$\d+::\w+\[\]/g, array => `(select ${array})`)
}

/** Longest wait for a lock, of a table that is being altered, say: told apart from a statement that is slow. */
export const lockTimeoutMs = 10_000

/**
 * What holds on a session of ours, whatever the login's defaults are.
 *
 * A plan is kept while the table may grow from nothing to millions of rows before its next ANALYZE, so a session
 * does without sequential scans: all we do in bulk is look up keys. The price of one that is "off" would have the
 * statement compiled, before Postgres 18.
 */
const sessionSettings: Record<string, string> = {
  ...steadySettings,
  enable_seqscan: 'off',
  jit: 'off',
  default_transaction_isolation: 'read committed',
  lock_timeout: String(lockTimeoutMs),
}

/**
 * Finds out whether the connection is a server session of its own: then the process id that the server gave
 * for cancelling is that of the backend. A pooler gives one that it made up.
 * (PostgreSQL, "Message Formats", BackendKeyData; PgBouncer hands out a random one.)
 *
 * One that is, is given the settings above, and may use names.
 */
export async function proveSession(client: pg.ClientBase): Promise<void> {
  if (await isOwnBackend(client, setConfigSql(sessionSettings))) sessions.add(client)
}

const setConfigSql = (settings: Readonly<Record<string, string>>): string =>
  Object.entries(settings)
    .map(([name, setting]) => `set_config('${name}', '${setting}', false)`)
    .join(' || ')

/** Whether `proveSession` has found it out, and given it the settings. */
export const isProvenSession = (client: object): boolean => sessions.has(client)

/** Begins a transaction in which our settings hold, on whatever connection. */
export const beginSql = (client: object, mode = 'isolation level read committed'): string =>
  `begin ${mode}${sessions.has(client) ? '' : `; ${setLocalSteadySql}`}`

/** As `proveSession` finds it out, and changes nothing. */
export function isSession(client: pg.ClientBase): Promise<boolean> {
  return isOwnBackend(client, 'null')
}

/**
 * Opens a connection that is no pool's, with the settings that every statement counts on where it is a session of its
 * own. Behind a pooler nothing is set: it might stay on a server connection that others use next.
 */
export async function connectSession(client: SteadyClient): Promise<void> {
  await client.connect()
  await isOwnBackend(client, setConfigSql(steadySettings))
}

async function isOwnBackend(client: pg.ClientBase, thenSql: string): Promise<boolean> {
  if (!('processID' in client) || typeof client.processID !== 'number') return false
  const { rows } = await client.query<{ own: boolean }>(
    `select pid = $1 as own, case when pid = $1 then ${thenSql} end from pg_backend_pid() pid`,
    [client.processID],
  )
  return rows[0]?.own === true
}
