// Step 3: put on record what the application calls the tenants of a batch, before anything of theirs is stored.
//
// A tenant that is named by a text or a number has a uuid that tells nothing. Its name is written once, where it is first
// seen: by it the tenant is found on the command line and in reports.
import { arrayText } from '../db/array-text.ts'
import type { Queryable } from '../db/pool.ts'
import { fromSql, tenantNameSql, tenantSql } from '../source/expressions.ts'
import { isKeyedRowSql, partArrays, partList, partParameters } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'
import type { PlannedRow } from './plan.ts'

/** So many tenants are remembered, and forgotten again together. */
const rememberedTenants = 10_000
/** An erasure takes the name away: whoever comes back after it is named again. */
const rememberMs = 10 * 60_000

export interface NamedTenants {
  tenants: Set<string>
  until: number
}

export const noNamedTenants = (): NamedTenants => ({ tenants: new Set(), until: 0 })

/** One statement for each source whose tenants have names, and none where all are known. */
export async function nameTenants(db: Queryable, rows: PlannedRow[], known: NamedTenants): Promise<void> {
  if (performance.now() > known.until || known.tenants.size > rememberedTenants) {
    known.tenants.clear()
    known.until = performance.now() + rememberMs
  }
  const named = rows.filter(row => row.source.tenantNamespace !== null && row.payloads.length > 0)
  for (const [source, ofSource] of Map.groupBy(named, row => row.source)) {
    const firsts = new Map<string, string>()
    for (const { tenantId, job } of ofSource)
      if (tenantId !== null && !known.tenants.has(tenantId)) firsts.set(tenantId, job.rowId)
    if (firsts.size === 0) continue
    const rowIds = [...firsts.values()]
    await db.query({
      text: nameSql(source),
      prepare: true,
      values: [arrayText(rowIds), arrayText([...firsts.keys()]), ...partArrays(source, rowIds)],
    })
    for (const tenantId of firsts.keys()) known.tenants.add(tenantId)
  }
}

/** In one order, so that two daemons with the same new tenants do not wait for each other in a circle. */
function nameSql(source: Source): string {
  return `
    insert into lighter.tenants as t (tenant_id, namespace, external_id)
    select distinct on (r.tenant_id) r.tenant_id, '${source.tenantNamespace}'::uuid, r.name
      from unnest($1::text[], $2::uuid[]${partParameters(source, 3)}) c(row_id, tenant_id${partList(source)})
     cross join lateral (
       select ${tenantSql(source)} as tenant_id, ${tenantNameSql(source)} as name
         from ${fromSql(source)}
        where ${isKeyedRowSql(source, 'c')}
       offset 0) r
     where r.tenant_id = c.tenant_id
       and not exists (select from lighter.tenants x where x.tenant_id = r.tenant_id and x.external_id is not null)
     order by r.tenant_id
        on conflict (tenant_id) do update
       set namespace = excluded.namespace, external_id = excluded.external_id
     where t.external_id is null`
}
