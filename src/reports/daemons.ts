// The daemons that the database knows of: those that keep a session to say so (src/wake/presence.ts).
import type { Queryable } from '../db/pool.ts'
import { beatMs, type DaemonState, presencePrefix } from '../wake/presence.ts'

export interface DaemonReport {
  /** Host and process id. */
  place: string
  version: string
  state: DaemonState
  /** Since when it is in this state. */
  since: string
  /** Since when its session stands: its start, or the last time that the connection was lost; null: not ours to see. */
  connected_at: string | null
  /** Seconds since it last said so; null: not ours to see. */
  silent_seconds: number | null
  /** It has not repeated itself for several beats: it hangs, or its machine is gone. */
  silent: boolean
}

const missedBeats = 3

/** Times of sessions of another login are only told to members of pg_read_all_stats. */
export async function readDaemons(db: Queryable): Promise<DaemonReport[]> {
  const { rows } = await db.query<{
    name: string
    connected_at: string | null
    silent_seconds: number | null
  }>({
    text: `select application_name as name, to_json(backend_start) as connected_at,
                  extract(epoch from clock_timestamp() - state_change)::float8 as silent_seconds
             from pg_stat_activity
            where datname = current_database() and starts_with(application_name, $1)
            order by application_name`,
    values: [presencePrefix],
  })
  return rows.flatMap(({ name, ...times }) => {
    const [version = '', state, since = '', place = ''] = name.slice(presencePrefix.length).split(' ')
    const seconds = Number.parseInt(since, 36)
    if (!isState(state) || !Number.isSafeInteger(seconds)) return []
    return [
      {
        place,
        version,
        state,
        since: new Date(seconds * 1000).toISOString(),
        ...times,
        silent: (times.silent_seconds ?? 0) * 1000 > beatMs * missedBeats,
      },
    ]
  })
}

function isState(value: unknown): value is DaemonState {
  return typeof value === 'string' && /^(starting|awake|asleep|paused|api|stopping)$/.test(value)
}

/**
 * Whether a daemon works off the queue: one keeps a session to say so; or, where a pooler hides the sessions, it says so in
 * lighter.daemons. That of one that was killed stands there for a minute or so.
 */
export async function isAnyDaemonWorking(db: Queryable): Promise<boolean> {
  const seen = await readDaemons(db)
  if (seen.some(({ state, silent }) => !silent && state !== 'api' && state !== 'stopping')) return true
  const { rows } = await db.query<{ said: boolean }>(
    'select exists (select from lighter.daemons d where d.until > clock_timestamp()) as said',
  )
  return rows[0]?.said === true
}
