// Every lock that we take on a table of ours, to keep others from what must be done alone: fair, over with its
// transaction or session, and only our roles can take it (an advisory lock any login could). Who runs a sweep, a
// backfill and the like for longer than a transaction is in lighter.locks: src/sweeps/lock.ts.

export const lockTables = {
  /** Commits of offloads, together; alone: who has forbidden something, and waits for those that have not seen it. */
  commits: { table: 'lighter.pins', together: 'row exclusive', alone: 'share' },
  /** Migrations, one at a time. */
  migrations: { table: 'lighter.schema_migrations', together: null, alone: 'share row exclusive' },
  /** attach, detach and set_threshold, one at a time: lighter.lock_attachments. */
  attachments: { table: 'lighter.settings', together: null, alone: 'share row exclusive' },
} as const

/** SQL of a statement: with others of its kind, and not beside who is alone. */
export const lockTogetherSql = ({ table, together }: { table: string; together: string }): string =>
  `lock table ${table} in ${together} mode`

/** SQL of a statement: alone. It waits for `lock_timeout`. */
export const lockAloneSql = ({ table, alone }: { table: string; alone: string }): string =>
  `lock table ${table} in ${alone} mode`
