// Rows that were moved to another tenant after their offload, and can't be read there.

import type { Queryable } from '../db/pool.ts'
import { samplePercent } from '../offload/table-size.ts'
import { fromSql, literal, tenantSql } from '../source/expressions.ts'
import { pointersOfRowSql } from '../source/modes.ts'
import { mayBeRowSql } from '../source/rows-by-key.ts'
import { loadSources, type Source } from '../source/sources.ts'

interface MovedRow {
  /** Of its source. */
  table: string
  rowId: string
  /** Null: it has none any more. */
  tenantId: string | null
  /** Of the artifact that it points to. */
  artifactTenantId: string
}

export interface MovedRows {
  rows: MovedRow[]
  /** Artifacts whose rows were looked at, and whether these were all there are. */
  lookedAt: number
  all: boolean
}

/** So many pages of either table are read: all of a table of 8 MB, else chosen at random. */
const samplePages = 1000
const mostArtifacts = 100_000
const mostRows = 1000

/**
 * Looks at the rows of a sample of artifacts, each found by its primary key, and again at those that the last
 * release sweep has named: that one sees every row. What was put right since is not among them.
 */
export async function findMovedRows(db: Queryable): Promise<MovedRows> {
  const frames = await samplePercent(db, 'lighter.frames', samplePages)
  const loose = await samplePercent(db, 'lighter.loose_artifacts', samplePages)
  const found: MovedRows = { rows: [], lookedAt: 0, all: frames === 100 && loose === 100 }
  for (const source of (await loadSources(db)).values()) {
    const { rows } = await db.query<MovedRow & { lookedAt: number }>({
      text: findSql(source),
      values: [frames, [source.id, ...source.formerIds], loose],
    })
    found.lookedAt += rows[0]?.lookedAt ?? 0
    if (rows[0]?.lookedAt === mostArtifacts) found.all = false
    found.rows.push(...rows.filter(row => row.rowId !== null))
  }
  return found
}

function findSql(source: Source): string {
  return `
    with sampled as materialized (
      select a.row_id, a.tenant_id as artifact_tenant_id, a.id as artifact_id
        from (select id from lighter.frames tablesample system ($1::float4)
              union all
              select id from lighter.loose_artifacts tablesample system ($3::float4)) s
        join public.artifact_refs a on a.frame_id = s.id
       where a.source_id = any ($2::int[]) and a.row_id is not null and a.purged_at is null
       limit ${mostArtifacts}
    ),
    candidates as (
      select row_id, artifact_tenant_id, artifact_id from sampled
      union
      select r.row_id, r.artifact_tenant_id, r.artifact_id
        from lighter.moved_row_records r
        join public.artifact_refs a on a.tenant_id = r.artifact_tenant_id and a.frame_id = lighter.frame_of(r.artifact_id) and a.id = r.artifact_id and a.purged_at is null
       where r.source_id = ${source.id}
    ),
    moved as (
      select distinct on (c.row_id) c.row_id, ${tenantSql(source)} as tenant_id, c.artifact_tenant_id
        from candidates c
        -- Whoever else writes artifact_refs may have written any row_id.
        join ${fromSql(source)} on ${mayBeRowSql(source, 'c.row_id')}
       where ${tenantSql(source)} is distinct from c.artifact_tenant_id
         and c.artifact_id = any (${pointersOfRowSql(source)})
         and not exists (select from public.artifact_refs o where o.tenant_id = ${tenantSql(source)} and o.frame_id = lighter.frame_of(c.artifact_id) and o.id = c.artifact_id)
       order by c.row_id
       limit ${mostRows}
    )
    select s.n as "lookedAt", ${literal(source.tableSql)} as table, v.row_id as "rowId", v.tenant_id as "tenantId",
           v.artifact_tenant_id as "artifactTenantId"
      from (select count(*)::int as n from sampled) s
      left join moved v on true`
}
