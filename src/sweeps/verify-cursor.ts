// How far a pass over all artifacts has come, so that an interrupted one goes on from there.
import type { Counts, SweepContext } from './context.ts'
import type { DamagedArtifact, VerifyOptions } from './verify.ts'

export interface Position {
  tenantId: string
  id: string
}

const beginning: Position = {
  tenantId: '00000000-0000-0000-0000-000000000000',
  id: '00000000-0000-0000-0000-000000000000',
}
const maxListed = 1000
const scopeOf = (options: VerifyOptions) => options.tenantId ?? ''

/**
 * Where to begin. An interrupted pass has its counts put into `counts`, and what it had found is returned again:
 * the outcome is that of the whole pass.
 */
export async function openCursor(
  context: SweepContext,
  options: VerifyOptions,
  counts: Counts,
): Promise<{ after: Position; damaged: DamagedArtifact[] }> {
  const { pool, dryRun } = context
  if (dryRun) return { after: beginning, damaged: [] }
  if (options.restart) await clearCursor(context, options)
  const { rows } = await pool.query<Position & { counts: Counts; startedAt: string }>(
    `select tenant_id as "tenantId", id, counts, started_at::text as "startedAt"
       from lighter.sweep_cursors where sweep = 'verify' and scope = $1`,
    [scopeOf(options)],
  )
  const [cursor] = rows
  if (cursor === undefined) {
    // Already now, so that it is older than all that the pass will put on record.
    await saveCursor(context, options, beginning, counts)
    return { after: beginning, damaged: [] }
  }
  Object.assign(counts, cursor.counts)
  const { rows: damaged } = await pool.query<DamagedArtifact>(
    `select tenant_id, id, kind, damage
       from public.artifact_refs
      where damaged_at >= $1 and purged_at is null and (tenant_id, id) <= ($2, $3)
        and ($4::uuid is null or tenant_id = $4)
      order by tenant_id, id
      limit $5`,
    [cursor.startedAt, cursor.tenantId, cursor.id, options.tenantId, maxListed],
  )
  return { after: { tenantId: cursor.tenantId, id: cursor.id }, damaged }
}

export async function saveCursor(
  { pool }: SweepContext,
  options: VerifyOptions,
  { tenantId, id }: Position,
  counts: Counts,
): Promise<void> {
  await pool.query(
    `insert into lighter.sweep_cursors (sweep, scope, tenant_id, id, counts) values ('verify', $1, $2, $3, $4)
         on conflict (sweep, scope) do update
        set tenant_id = excluded.tenant_id, id = excluded.id, counts = excluded.counts, updated_at = now()`,
    [scopeOf(options), tenantId, id, JSON.stringify(counts)],
  )
}

export async function clearCursor({ pool }: SweepContext, options: VerifyOptions): Promise<void> {
  await pool.query(`delete from lighter.sweep_cursors where sweep = 'verify' and scope = $1`, [
    scopeOf(options),
  ])
}
