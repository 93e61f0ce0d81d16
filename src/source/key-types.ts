// What the type of a row's key means for us. In SQL: the check of lighter.sources.key_type, and lighter.attach.

interface KeyType {
  /** What it is called in messages. */
  label: string
  /** Every text that it accepts in a request. */
  form: RegExp
  /** Whether a frame keeps such keys as uuids, which are shorter, not as texts. */
  isUuid: boolean
  /** SQL: the key that a text spells, null where it spells none. Of texts that somebody else may have written. */
  fromTextSql: (text: string) => string
}

const uuid: KeyType = {
  label: 'uuid',
  form: /^[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}$/i,
  isUuid: true,
  fromTextSql: text => `lighter.as_uuid(${text})`,
}

const wholeNumber: KeyType = {
  label: 'whole number',
  form: /^-?\d{1,19}$/,
  isUuid: false,
  fromTextSql: text => `case when ${text} ~ '^-?[0-9]{1,18}$' then ${text}::bigint end`,
}

export const keyTypes = { uuid, bigint: wholeNumber, integer: wholeNumber } as const

export type KeyTypeName = keyof typeof keyTypes
