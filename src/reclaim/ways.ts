// The ways to rewrite a table, with their locks and what they need: for who decides.
import { formatBytes } from '../cli/output.ts'
import type { Space } from './space.ts'

export interface Way {
  name: 'pg_repack' | 'pg_squeeze' | 'vacuum_full' | 'cluster' | 'partitions'
  /** One line. */
  what: string
  lock: string
  disk: string
  /** Commands and statements, in order. */
  steps: string[]
}

/**
 * Bytes of the table a second, for the expected duration of VACUUM FULL. Measured: 82 MB/s where most of it is TOAST, 210 MB/s
 * of short rows (360 and 260 MB in the cache, one index, Postgres 15, 2 cores); the smallest cloud disks have 50.
 */
const rewriteBytesPerSecond = 50_000_000

export function expectedSeconds({ now }: Space): number {
  return Math.max(1, Math.ceil((now.table + now.indexes) / rewriteBytesPerSecond))
}

export function waysFor(space: Space): Way[] {
  const { tableSql, rewritten, partitions } = space
  const copy = formatBytes(rewritten.table + rewritten.indexes)
  const seconds = expectedSeconds(space)
  const isPartitioned = partitions > 0
  const ways: Way[] = [
    {
      name: 'pg_repack',
      what: 'rewrites the table while the application reads and writes it',
      lock: 'ACCESS EXCLUSIVE for moments, at the start and at the end; ACCESS SHARE between. lighter passes --no-kill-backend: it waits, and ends no session of yours',
      disk: `about ${copy} more until it is done, and as much WAL. What is written meanwhile is kept in a log table`,
      steps: [
        'apt-get install postgresql-<version>-repack    # or your provider: the same version as the extension',
        'create extension pg_repack;',
        `lighter reclaim ${tableSql} --repack`,
      ],
    },
    {
      name: 'pg_squeeze',
      what: 'as pg_repack, by logical decoding, without triggers',
      lock: 'ACCESS EXCLUSIVE for a moment at the end, bounded by squeeze.max_xlock_time',
      disk: `about ${copy} more until it is done, and the WAL of what is written meanwhile. It needs wal_level = logical`,
      steps: [
        "alter system set wal_level = 'logical'; alter system set shared_preload_libraries = 'pg_squeeze';    -- and a restart",
        'create extension pg_squeeze;',
        `select squeeze.squeeze_table('<schema>', '<table>');    -- ${tableSql}`,
      ],
    },
    {
      name: 'vacuum_full',
      what: 'rewrites the table; nobody can read or write it meanwhile',
      lock: `ACCESS EXCLUSIVE all the time: about ${durationText(seconds)} at ${formatBytes(rewriteBytesPerSecond)} a second (assumed; 80 to 210 MB measured on a fast disk)`,
      disk: `about ${copy} more until it is done, and as much WAL`,
      steps: [`lighter reclaim ${tableSql} --full --yes    # or: vacuum (full, analyze) ${tableSql};`],
    },
    {
      name: 'cluster',
      what: 'as VACUUM FULL, and puts the rows in the order of an index',
      lock: `ACCESS EXCLUSIVE all the time: longer than VACUUM FULL, since it sorts`,
      disk: `about twice ${copy} more where it sorts, and as much WAL`,
      steps: [`cluster ${tableSql} using <index>; analyze ${tableSql};`],
    },
  ]
  if (isPartitioned)
    ways.unshift({
      name: 'partitions',
      what: `one of its ${partitions} partitions after the other, so that a lock is of one alone`,
      lock: 'as the way that is chosen, of one partition at a time',
      disk: 'of the largest partition',
      steps: [
        `select relid from pg_partition_tree('${tableSql}') where isleaf;`,
        'lighter reclaim <partition> --repack',
      ],
    })
  return ways
}

export function durationText(seconds: number): string {
  if (seconds < 120) return `${seconds} s`
  return seconds < 7200 ? `${Math.ceil(seconds / 60)} minutes` : `${(seconds / 3600).toFixed(1)} hours`
}
