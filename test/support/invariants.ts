// What must hold at every instant, as questions to a database and a bucket.
import type { TestEnvironment } from './environment.ts'

/** Objects in the bucket that lighter.objects does not know, and objects it says are stored that are not there. */
export async function bucketMismatches(
  environment: TestEnvironment,
): Promise<{ unregistered: string[]; missing: string[] }> {
  const listed = new Set<string>()
  for await (const { key } of environment.store.list(`${environment.store.prefix}tenants/`)) listed.add(key)
  const { rows } = await environment.admin.query<{ key: string; state: string }>(
    'select r2_key as key, state from lighter.objects',
  )
  const known = new Set(rows.map(row => row.key))
  return {
    unregistered: [...listed].filter(key => !known.has(key)),
    missing: rows.filter(row => row.state === 'stored' && !listed.has(row.key)).map(row => row.key),
  }
}

/** Artifacts whose object is not stored, or lies under another tenant's keys. */
export async function strayArtifacts(environment: TestEnvironment): Promise<unknown[]> {
  const { rows } = await environment.admin.query(
    `select a.id, a.tenant_id, a.r2_key, o.state
       from artifact_refs a left join lighter.objects o using (tenant_id, r2_key)
      where o.state is distinct from 'stored'
         or a.r2_key not like '%tenants/' || a.tenant_id || '/%'`,
  )
  return rows
}
