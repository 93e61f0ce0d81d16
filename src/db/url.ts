// Where a database is and who we are there.

/** A connection string, or what tells the present one: a password may be renewed while we run. */
export type ConnectionUrl = string | (() => string)

export const presentUrl = (url: ConnectionUrl): string => (typeof url === 'function' ? url() : url)
