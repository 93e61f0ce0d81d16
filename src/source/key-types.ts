// How the columns of a key are written and read, by form: sql/functions/18_row_keys.sql says which types have which, and
// writes them.

interface KeyForm {
  /** What it is called in messages. */
  label: string
  /** Whether a frame keeps keys of one such column as uuids, which are shorter, not as texts. */
  isUuid: boolean
  /** SQL: the value that a part of a key spells. Of a part that the queue or `canonicalKey` wrote. */
  valueSql: (part: string, type: string) => string
  /** SQL: the same, null where it spells none. Of texts that somebody else may have written. */
  fromTextSql: (part: string, type: string) => string
}

const cast = (part: string, type: string) => `${part}::${type}`

/** Not by a cast, which anybody may define for an enum of their own. */
const enumSql = (part: string, type: string) =>
  `(select e.e from pg_catalog.unnest(pg_catalog.enum_range(null::${type})) e(e) where pg_catalog.format('%s', e.e) = ${part})`

export const keyForms = {
  uuid: { label: 'uuid', isUuid: true, valueSql: cast, fromTextSql: part => `lighter.as_uuid(${part})` },
  integer: {
    label: 'whole number',
    isUuid: false,
    valueSql: cast,
    fromTextSql: part =>
      `case when ${part} ~ '^-?[0-9]{1,19}$' and ${part}::numeric between -9223372036854775808 and 9223372036854775807 then ${part}::bigint end`,
  },
  text: { label: 'text', isUuid: false, valueSql: part => part, fromTextSql: part => part },
  date: {
    label: 'date',
    isUuid: false,
    valueSql: cast,
    fromTextSql: part => `lighter.as_timestamp(${part})::date`,
  },
  timestamp: {
    label: 'timestamp',
    isUuid: false,
    valueSql: cast,
    fromTextSql: part => `lighter.as_timestamp(${part})`,
  },
  timestamptz: {
    label: 'timestamp with time zone',
    isUuid: false,
    valueSql: cast,
    fromTextSql: part => `lighter.as_timestamptz(${part})`,
  },
  enum: { label: 'value of an enum', isUuid: false, valueSql: enumSql, fromTextSql: enumSql },
} as const satisfies Record<string, KeyForm>

export type KeyFormName = keyof typeof keyForms
