// What an export is to hold: the ids of all artifacts that are live in one snapshot, put on record before the first
// is read. An export takes hours, and may be stopped and go on; what is committed meanwhile, whatever its time of
// creation says, is not in it, and what was committed before is.
import { createHash } from 'node:crypto'
import type { Readable } from 'node:stream'
import type pg from 'pg'
import { to as copyTo } from 'pg-copy-streams'
import { beginSql } from '../db/prepared.ts'
import { type ArtifactId, asArtifactId, type TenantId } from '../ids.ts'
import { literal } from '../source/expressions.ts'
import type { ExportTarget } from './target.ts'

const listName = 'artifacts.txt'

/** A uuid and the end of the line: so the n-th id is found without reading the others. */
const lineBytes = 37

export interface List {
  /** Whatever was committed before this moment is listed. */
  as_of: string
  artifacts: number
  sha256: string
}

/** Writes the list, in the order in which the artifacts are exported: by kind, and of a kind the oldest first. */
export async function writeList(pool: pg.Pool, target: ExportTarget, tenantId: TenantId): Promise<List> {
  const client = await pool.connect()
  let broken: Error | undefined
  try {
    await client.query(
      `${beginSql(client, 'isolation level repeatable read read only')}; set local statement_timeout = 0`,
    )
    const { rows } = await client.query<{ now: string }>(
      `select to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as now`,
    )
    const ids: Readable = client.query(
      copyTo(`copy (
        select a.id from public.artifact_refs a
         where a.tenant_id = ${literal(tenantId)} and a.deleted_at is null
         order by a.kind, a.created_at, a.id) to stdout`),
    )
    const hash = createHash('sha256')
    let bytes = 0
    async function* body(): AsyncGenerator<Buffer> {
      for await (const chunk of ids as AsyncIterable<Buffer>) {
        hash.update(chunk)
        bytes += chunk.length
        yield chunk
      }
    }
    await target.write(listName, body())
    await client.query('commit')
    return { as_of: rows[0]?.now ?? '', artifacts: bytes / lineBytes, sha256: hash.digest('hex') }
  } catch (error) {
    // The rest of the list would still arrive on it.
    broken = error instanceof Error ? error : new Error(String(error))
    throw error
  } finally {
    client.release(broken)
  }
}

/** The ids from the `from`-th on, at most `count`; none at the end. */
export async function readList(target: ExportTarget, from: number, count: number): Promise<ArtifactId[]> {
  const bytes = await target.readRange(listName, from * lineBytes, count * lineBytes)
  return bytes
    .toString('latin1')
    .split('\n')
    .filter(line => line !== '')
    .map(asArtifactId)
}
