// What is looked for when an erasure is done. Nothing may be found.
import pLimit from 'p-limit'
import { isTenantKeySql, tenantPrefix } from '../store/keys.ts'
import type { SweepContext } from '../sweeps/context.ts'
import { type EraseScope, inScope } from './scope.ts'

export interface Proof {
  /** Nothing of the scope was found anywhere. */
  complete: boolean
  /** Of a tenant: keys under its prefix. Of an entity: of the objects that were deleted, those still there. */
  objects_listed: number
  /** Artifacts. */
  artifacts: number
  /** Frames of packs in which something of the scope is named still, artifact or not. */
  frames: number
  /** Objects, not on their way out, that hold bytes of the scope. */
  objects_with_bytes: number
  /** Uploads of the tenant under way: somebody still writes, and nobody can tell what. */
  uploads: number
  /**
   * Objects on record outside of the prefix, under a former one say, where we delete nothing: of a tenant, all of
   * them; of an entity, those on their way out, of which nothing tells what is in them.
   */
  objects_elsewhere: number
  /** Objects deleted, to be deleted once more by the orphans sweep, should a late PUT bring one back. */
  objects_deleted_again_later: number
}

const headsAtOnce = 8
const headsPerPage = 1000

/** The bucket first: what comes into being after the look at it is found in the account. */
export async function proveErased(
  { pool, store }: SweepContext,
  scope: EraseScope,
  since: string,
): Promise<Proof> {
  let listed = 0
  if (scope.entity === null) {
    const keys = store.list(tenantPrefix(store.prefix, scope.tenantId))
    while ((await keys.next()).done !== true) listed++
  } else {
    const limit = pLimit(headsAtOnce)
    for (let after = ''; ; ) {
      const { rows } = await pool.query<{ key: string }>(
        `select r2_key as key from lighter.objects
          where tenant_id = $1 and r2_key > $2 and state = 'deleting' and first_deleted_at >= $3
            and ${isTenantKeySql('$5::text', 'tenant_id', 'r2_key')}
          order by r2_key limit $4`,
        [scope.tenantId, after, since, headsPerPage, store.prefix],
      )
      const heads = await Promise.all(rows.map(({ key }) => limit(() => store.head(key))))
      listed += heads.filter(head => head !== null).length
      const last = rows.at(-1)
      if (last === undefined) break
      after = last.key
    }
  }
  const where = inScope(scope)
  const { rows } = await pool.query<{
    artifacts: number
    frames: number
    with_bytes: number
    uploads: number
    elsewhere: number
    later: number
  }>(
    `select (select count(*)::int from public.artifact_refs a where ${where.sql}) as artifacts,
            (select count(*)::int from lighter.frames f
              where f.tenant_id = $1 ${scope.entity === null ? '' : 'and f.entity_type = $2 and f.entities @> array[$3::uuid]'}) as frames,
            (select count(*)::int from lighter.objects o
              where o.tenant_id = $1 and o.state = 'stored'
                and ${scope.entity === null ? 'true' : `exists (select from public.artifact_refs a where ${where.sql} and a.r2_key = o.r2_key)`}) as with_bytes,
            (select count(*)::int from lighter.objects o where o.tenant_id = $1 and o.state = 'uploading') as uploads,
            (select count(*)::int from lighter.objects o
              where o.tenant_id = $1 and not ${isTenantKeySql(`$${where.next}::text`, 'o.tenant_id', 'o.r2_key')}
                ${scope.entity === null ? '' : `and o.state = 'deleting'`}) as elsewhere,
            (select count(*)::int from lighter.objects o
              where o.tenant_id = $1 and o.state = 'deleting' and o.first_deleted_at is not null) as later`,
    [...where.values, store.prefix],
  )
  const [found] = rows
  if (found === undefined) throw new Error('the proof answered no row')
  return {
    complete:
      listed + found.artifacts + found.frames + found.with_bytes + found.uploads + found.elsewhere === 0,
    objects_listed: listed,
    artifacts: found.artifacts,
    frames: found.frames,
    objects_with_bytes: found.with_bytes,
    uploads: found.uploads,
    objects_elsewhere: found.elsewhere,
    objects_deleted_again_later: found.later,
  }
}
