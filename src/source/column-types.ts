// What the type of an attached column means for its values. In SQL: lighter.column_kind, and the check of
// lighter.sources.column_type. A domain counts as the type that it is made of, varchar as text.

interface ColumnType {
  /** Of an artifact that holds such a value. */
  contentType: string
  /** Of the key of a loose object. */
  extension: string
  /** SQL: the value as a text to be sent, which `bytesOf` reads. */
  textSql: (value: string) => string
  /** The exact bytes of the value, out of the text that was sent. */
  bytesOf: (text: string) => Buffer
  /** Inverse of `bytesOf`. */
  textOf: (bytes: Buffer) => string
  /** SQL: what binary COPY writes as exactly the value's bytes. */
  copySql: (value: string) => string
  /** SQL: the value that such a text spells. */
  valueSql: (text: string) => string
  /** Type of a parameter that is given the bytes themselves, and the value made of it. */
  parameter: { type: string; valueSql: (parameter: string) => string }
  /** SQL: whether two values are the same bytes. Not all types have `=`, and that of a text depends on its collation. */
  isSameSql: (a: string, b: string) => string
  /** Whether pointers may be found in it. */
  isText: boolean
}

const asText = (value: string) => `${value}::text`
const isSameText = (a: string, b: string) => `(${a}::text collate "C") = (${b}::text collate "C")`

const ofText = {
  textSql: asText,
  bytesOf: (text: string) => Buffer.from(text),
  textOf: (bytes: Buffer) => bytes.toString('utf8'),
  copySql: asText,
  isSameSql: isSameText,
  isText: true,
}

export const columnTypes = {
  jsonb: {
    ...ofText,
    contentType: 'application/json',
    extension: 'json',
    valueSql: text => `${text}::jsonb`,
    parameter: { type: 'text', valueSql: value => `${value}::jsonb` },
  },
  json: {
    ...ofText,
    contentType: 'application/json',
    extension: 'json',
    valueSql: text => `${text}::json`,
    parameter: { type: 'text', valueSql: value => `${value}::json` },
  },
  text: {
    ...ofText,
    contentType: 'text/plain; charset=utf-8',
    extension: 'txt',
    valueSql: text => text,
    parameter: { type: 'text', valueSql: value => value },
  },
  bytea: {
    contentType: 'application/octet-stream',
    extension: 'bin',
    // node-postgres makes a string of every field before anybody sees it: so one that no character set can change.
    textSql: value => `encode(${value}, 'base64')`,
    bytesOf: text => Buffer.from(text, 'base64'),
    textOf: bytes => bytes.toString('base64'),
    copySql: value => `${value}::bytea`,
    valueSql: text => `decode(${text}, 'base64')`,
    parameter: { type: 'bytea', valueSql: value => value },
    isSameSql: (a, b) => `${a} = ${b}`,
    isText: false,
  },
} as const satisfies Record<string, ColumnType>

export type ColumnTypeName = keyof typeof columnTypes

export const columnTypeOf = ({ columnType }: { columnType: ColumnTypeName }): ColumnType =>
  columnTypes[columnType]
