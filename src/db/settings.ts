// The settings that our statements and their answers count on, whatever `alter role` or `alter database` made the
// default. Written once, here, for every connection of ours: a session of its own gets them when it opens, a statement
// behind a pooler in transaction mode gets them with its transaction (src/db/pool.ts). The start-up packet cannot carry
// them, since PgBouncer refuses `options`.
//
// Not among them: TimeZone, since our texts name the offset, and a column without a time zone means the database's;
// default_transaction_read_only, which an administrator sets to stop all writing.
import pg from 'pg'
import { LighterError } from '../errors.ts'

export const steadySettings: Readonly<Record<string, string>> = {
  // How values are written.
  DateStyle: 'ISO, MDY',
  IntervalStyle: 'postgres',
  bytea_output: 'hex',
  extra_float_digits: '1',
  quote_all_identifiers: 'off',
  // How they are read.
  array_nulls: 'on',
  standard_conforming_strings: 'on',
  transform_null_equals: 'off',
  // Which rows a statement sees: "off" makes an error of every policy, and a limit here returns some matches of many.
  row_security: 'on',
  gin_fuzzy_search_limit: '0',
  // What names mean. Not schema public: on many servers everybody may create there a function, or an operator, that fits
  // our arguments better than Postgres's own.
  search_path: 'pg_catalog',
}

const setLocal = (settings: Readonly<Record<string, string>>) =>
  Object.entries(settings)
    .map(
      ([name, value]) =>
        `set local ${name} = ${value.includes(',') && name !== 'search_path' ? `'${value}'` : value}`,
    )
    .join('; ')

/** Statements that give the transaction they are run in these settings. */
export const setLocalSteadySql = setLocal(steadySettings)

const { search_path: _, ...withoutPath } = steadySettings
/** As `steadySettings`, but a name that the operator types means what it means to the operator's login. */
export const setForOperatorSql = setLocal(withoutPath).replaceAll('set local', 'set')

/** Types of Postgres: date, timestamp, timestamptz. */
const dateTypes = [1082, 1114, 1184]

/**
 * The driver's parsers, except that a date it cannot read is an error. It would be null, and null of a tombstone means
 * "not deleted".
 */
function strictTypes(): pg.CustomTypesConfig {
  const types = new pg.TypeOverrides()
  for (const oid of dateTypes) {
    const parse = pg.types.getTypeParser(oid, 'text')
    types.setTypeParser(oid, (text: string) => {
      const date: unknown = parse(text)
      if (date === null || date === undefined || (date instanceof Date && Number.isNaN(date.getTime())))
        throw new LighterError('unreadable_date', `the database wrote a date as "${text}"`, {
          hint: 'Set DateStyle back to ISO: alter database <name> reset datestyle; (or: alter role <login> reset datestyle;)',
        })
      return date
    })
  }
  return types
}

const types = strictTypes()

/** A connection of ours. All are made of it. */
export class SteadyClient extends pg.Client {
  constructor(config: pg.ClientConfig) {
    super({ ...config, types })
  }

  /** What the driver sends first. Every pooler knows this one of the settings, and keeps it with the connection. */
  getStartupConf(): Record<string, string> {
    const own: unknown = Reflect.get(pg.Client.prototype, 'getStartupConf')
    if (typeof own !== 'function') throw new Error('the driver has no getStartupConf')
    return { ...Reflect.apply(own, this, []), DateStyle: 'ISO, MDY' }
  }
}

/** SQL: the name of a table as people know it, whatever the search_path of the session is. */
export const tableNameSql = (relation: string) => `regexp_replace(${relation}::text, '^public\\.', '')`

/** SQL: the table that somebody has named, null where there is none. One without its schema is of schema public. */
export const namedTableSql = (name: string) =>
  `to_regclass(case when strpos(${name}, '.') = 0 then 'public.' || ${name} else ${name} end)`
