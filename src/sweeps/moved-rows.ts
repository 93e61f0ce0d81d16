// Rows that point to another tenant's artifacts: they, or what tells their tenant, were moved there after their
// offload, or copied. Nobody can read them. The release sweep, which sees every pointer, finds them on its way.
import { randomUUID } from 'node:crypto'
import type pg from 'pg'
import { fromSql, tenantSql } from '../source/expressions.ts'
import { pointersOfRowSql } from '../source/modes.ts'
import { rowKeySql } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'

/** So many are named; all are counted. */
const namedRows = 1000

/** Stands for the tenant of a row that has none. Made anew by each process: any that is known may be a tenant's. */
export const noTenantSql = `'${randomUUID()}'::uuid`

/**
 * Within the snapshot of a release sweep, once the table `pointed_to` has every pointer with the tenant of whoever
 * reads by it: fills the temporary table `moved_rows`.
 * Rows are looked through again only where such pointers were found.
 * @returns how many pointers lead to another tenant's artifacts, and to none of their own
 */
export async function findMovedRows(client: pg.ClientBase, sources: Source[]): Promise<number> {
  await client.query(`
    create temporary table moved_rows (
      source_id integer, row_id text, tenant_id uuid, artifact_tenant_id uuid, artifact_id uuid,
      primary key (source_id, row_id));
    create temporary table strayed as
    select m.id, m.tenant_id, a.tenant_id as artifact_tenant_id
      from (select m.*, f.tenant_id as owner_id from pointed_to m join lighter.frames f on f.id = m.frame_id and f.tenant_id <> m.tenant_id
            union all
            select m.*, l.tenant_id from pointed_to m join lighter.loose_artifacts l on l.id = m.id and l.tenant_id <> m.tenant_id) m
      join public.artifact_refs a on a.tenant_id = m.owner_id and a.frame_id = m.frame_id and a.id = m.id
     where a.purged_at is null
       and not exists (select from public.artifact_refs o where o.tenant_id = m.tenant_id and o.frame_id = m.frame_id and o.id = m.id)`)
  const { rows } = await client.query<{ n: number }>('select count(*)::int as n from strayed')
  const strayed = rows[0]?.n ?? 0
  for (const source of strayed === 0 ? [] : sources) await nameRows(client, source)
  return strayed
}

/** Those that have such a pointer themselves, and those whose payload has it. */
async function nameRows(client: pg.ClientBase, source: Source): Promise<void> {
  await client.query({
    text: `
      insert into moved_rows
      select ${source.id}, ${rowKeySql(source)}, ${tenantSql(source)}, s.artifact_tenant_id, s.id
        from ${fromSql(source)}
       cross join lateral unnest(${pointersOfRowSql(source)}) ptr(id)
        join strayed s on s.id = ptr.id and s.tenant_id = coalesce(${tenantSql(source)}, ${noTenantSql})
       where octet_length(${rowKeySql(source)}) <= lighter.longest_key()
       limit $1
          on conflict do nothing`,
    values: [namedRows],
  })
  await client.query({
    text: `
      insert into moved_rows
      select ${source.id}, a.row_id, a.tenant_id, s.artifact_tenant_id, s.id
        from strayed s
        join public.artifact_refs a on a.tenant_id = s.tenant_id and a.frame_refers_to @> array[s.id] and a.frame_refers_to <> '{}' and a.refers_to @> array[s.id]
       where a.source_id = any ($2::int[]) and a.row_id is not null and a.deleted_at is null
       limit $1
          on conflict do nothing`,
    values: [namedRows, [source.id, ...source.formerIds]],
  })
}

/** Puts on record what was found, in the place of what was found the last time. */
export async function recordMovedRows(client: pg.ClientBase): Promise<void> {
  await client.query(`
    begin;
    delete from lighter.moved_row_records;
    insert into lighter.moved_row_records (source_id, row_id, tenant_id, artifact_tenant_id, artifact_id)
    select * from moved_rows order by source_id, row_id limit ${namedRows};
    commit`)
}
