// What changes the state of many artifacts at once: of a loose one its row, of those in a frame the exceptions of the
// frame. By frame: what happens to many of one at once is a row, and the frame is counted once.
import { arrayText } from '../db/array-text.ts'
import type { Queryable } from '../db/pool.ts'

/** Artifacts that lie together: some of a frame, or a loose one. */
export interface Together {
  tenantId: string
  /** Of a loose one its own id. */
  frameId: string
  ordinals: number[] | null
}

export interface Changed extends Together {
  n: number
  /** Of their payloads. */
  bytes: number
}

/** From one state to another. */
export interface Change {
  /** Columns of the state, and the SQL of their new values. */
  set: Partial<Record<'released_at' | 'deleted_at' | 'deleted_reason' | 'purged_at', string>>
  /** SQL: what must hold still, of the row `x`: a loose artifact, or an exception. */
  still: string
  /** Whether it holds also for those of which nothing has been said yet: they have no exception. */
  ofAll: boolean
  /** Whether nothing may be left of which an exception tells. */
  mayClear?: boolean
  /** What stands as $4 and so on in `set` and `still`. */
  values?: unknown[]
}

export const released: Change = {
  set: { released_at: 'now()' },
  still: 'x.released_at is null and x.deleted_at is null',
  ofAll: true,
}

/** A row points to it again. */
export const foundAgain: Change = {
  set: { released_at: 'null', deleted_at: 'null', deleted_reason: 'null' },
  still: `x.purged_at is null
    and (x.deleted_at is null and x.released_at is not null or x.deleted_at is not null and x.deleted_reason like 'released:%')`,
  ofAll: false,
  mayClear: true,
}

/** SQL, of the row `x`: released, and the grace period (`days`) is over. A run of a week later comes a moment too early. */
export const isUnusedSql = (days: string) =>
  `x.released_at < now() - make_interval(days => ${days}) + interval '1 hour' and x.deleted_at is null`

export const tombstoned = (graceDays: number): Change => ({
  set: { deleted_at: 'now()', deleted_reason: `'released: no row points to it'` },
  still: isUnusedSql('$4'),
  ofAll: false,
  values: [graceDays],
})

export const expiredByPolicy = (policy: string): Change => ({
  set: { deleted_at: 'now()', deleted_reason: '$4::text' },
  still: 'x.deleted_at is null',
  ofAll: true,
  values: [`expired: ${policy}`],
})

/** SQL, of the row `x`: it has a date of its own, which is over. */
export const isOverSql = 'x.expires_at < now() and x.deleted_at is null'

export const expiredByDate: Change = {
  set: { deleted_at: 'now()', deleted_reason: `'expired: its own date'` },
  still: isOverSql,
  ofAll: false,
}

/** SQL, of the row `x`: it has a tombstone, and the grace period (`days`) is over. */
export const isPurgeableSql = (days: string) =>
  `x.deleted_at < now() - make_interval(days => ${days}) and x.purged_at is null`

export const purged = (graceDays: number): Change => ({
  set: { purged_at: 'now()' },
  still: isPurgeableSql('$4'),
  ofAll: false,
  values: [graceDays],
})

/** Without a period of grace. */
export const erased: Change = {
  set: { purged_at: 'now()', deleted_at: 'now()', deleted_reason: `'erased'` },
  still: 'x.purged_at is null',
  ofAll: true,
}

const state = [
  'expires_at',
  'released_at',
  'deleted_at',
  'deleted_reason',
  'purged_at',
  'damaged_at',
  'damage',
] as const

/** SQL: the artifacts in `due` (tenant_id, frame_id, ordinal) as JSON, as `changeArtifacts` takes them. */
export const dueSql = `(
  select coalesce(json_agg(t), '[]')
    from (select tenant_id as "tenantId", frame_id as "frameId",
                 array_agg(ordinal order by ordinal) filter (where ordinal is not null) as ordinals
            from due group by tenant_id, frame_id) t)`

/**
 * Changes artifacts for which the change holds still. Of two that change the same one the second looks again.
 * @param db in a transaction
 * @param locked what becomes of artifacts whose frame somebody has locked
 * @returns those that were changed, by frame
 */
export async function changeArtifacts(
  db: Queryable,
  due: Together[],
  change: Change,
  locked: 'skip' | 'wait' = 'skip',
): Promise<Changed[]> {
  const loose = due.filter(d => d.ordinals === null)
  const ofFrames = due.filter(d => d.ordinals !== null)
  return [
    ...(loose.length === 0 ? [] : await changeLoose(db, loose, change)),
    ...(ofFrames.length === 0 ? [] : await changeOfFrames(db, ofFrames, change, locked)),
  ]
}

async function changeLoose(db: Queryable, due: Together[], change: Change): Promise<Changed[]> {
  const { rows } = await db.query<Changed>({
    text: `update lighter.loose_artifacts x set ${assignments(change)}
             from unnest($1::uuid[], $2::uuid[], $3::text[]) d(tenant_id, id, nothing)
            where x.tenant_id = d.tenant_id and x.id = d.id and ${change.still}
           returning x.tenant_id as "tenantId", x.id as "frameId", null as ordinals, 1 as n,
                     coalesce(x.size_bytes, 0)::float8 as bytes`,
    values: [
      due.map(d => d.tenantId),
      due.map(d => d.frameId),
      due.map(() => null),
      ...(change.values ?? []),
    ],
  })
  return rows
}

async function changeOfFrames(
  db: Queryable,
  due: Together[],
  change: Change,
  locked: 'skip' | 'wait',
): Promise<Changed[]> {
  // As everybody does who changes an artifact of a frame: the frame first. The next statement sees what they did.
  const { rows: ours } = await db.query<{ tenantId: string; id: string }>({
    text: `select f.tenant_id as "tenantId", f.id
             from unnest($1::uuid[], $2::uuid[]) d(tenant_id, id) join lighter.frames f using (tenant_id, id)
            order by f.tenant_id, f.id
              for no key update of f ${locked === 'skip' ? 'skip locked' : ''}`,
    values: [due.map(d => d.tenantId), due.map(d => d.frameId)],
  })
  const isOurs = new Set(ours.map(f => `${f.tenantId}/${f.id}`))
  const wanted = due.filter(d => isOurs.has(`${d.tenantId}/${d.frameId}`))
  if (wanted.length === 0) return []
  const columns = Object.keys(change.set)
  const { rows } = await db.query<Changed>({
    text: `
      with wanted as materialized (
        select w.tenant_id, w.frame_id, w.ordinals::smallint[] as ordinals
          from unnest($1::uuid[], $2::uuid[], $3::text[]) w(tenant_id, frame_id, ordinals)
      ),
      -- A row of which only a part changes is parted.
      hit as materialized (
        select x.tenant_id, x.frame_id, x.ordinal, ${state.map(c => `x.${c}`).join(', ')},
               array(select o from unnest(x.ordinals) o where o = any (w.ordinals) order by o) as inside,
               array(select o from unnest(x.ordinals) o where o <> all (w.ordinals) order by o) as outside
          from wanted w
          join lighter.frame_exceptions x on x.tenant_id = w.tenant_id and x.frame_id = w.frame_id and x.ordinals && w.ordinals
         where ${change.still}
      ),
      changed as (
        update lighter.frame_exceptions x set ordinal = h.inside[1], ordinals = h.inside, ${assignments(change)}
          from hit h
         where x.tenant_id = h.tenant_id and x.frame_id = h.frame_id and x.ordinal = h.ordinal
        returning h.tenant_id, h.frame_id, h.inside as ordinals, h.outside, ${state.map(c => `h.${c}`).join(', ')}
      ),
      rest as (
        insert into lighter.frame_exceptions (tenant_id, frame_id, ordinal, ordinals, ${state.join(', ')})
        select c.tenant_id, c.frame_id, c.outside[1], c.outside, ${state.map(c => `c.${c}`).join(', ')} from changed c where c.outside <> '{}'
      )
      ${
        change.ofAll
          ? `,
      opened as (
        insert into lighter.frame_exceptions (tenant_id, frame_id, ordinal, ordinals, ${columns.join(', ')})
        select w.tenant_id, w.frame_id, u.ordinals[1], u.ordinals, ${Object.values(change.set).join(', ')}
          from wanted w
          join lighter.frames f on f.tenant_id = w.tenant_id and f.id = w.frame_id
         cross join lateral (
           select array(select unnest(w.ordinals)
                        except select unnest(f.voids)
                        except select unnest(x.ordinals) from lighter.frame_exceptions x
                                where x.tenant_id = w.tenant_id and x.frame_id = w.frame_id
                        order by 1) as ordinals
           offset 0) u
         where u.ordinals <> '{}'
        returning tenant_id, frame_id, ordinals
      )`
          : ''
      }
      select c.tenant_id as "tenantId", c.frame_id as "frameId", c.ordinals, cardinality(c.ordinals) as n,
             (select sum(f.sizes[o + 1]) from unnest(c.ordinals) o)::float8 as bytes
        from (select tenant_id, frame_id, ordinals from changed ${change.ofAll ? 'union all select * from opened' : ''}) c
        join lighter.frames f on f.tenant_id = c.tenant_id and f.id = c.frame_id`,
    values: [
      wanted.map(w => w.tenantId),
      wanted.map(w => w.frameId),
      wanted.map(w => arrayText(w.ordinals ?? [])),
      ...(change.values ?? []),
    ],
  })
  if (change.mayClear === true) {
    await db.query({
      text: `delete from lighter.frame_exceptions x using unnest($1::uuid[], $2::uuid[]) w(tenant_id, frame_id)
              where x.tenant_id = w.tenant_id and x.frame_id = w.frame_id
                and num_nonnulls(${state.map(c => `x.${c}`).join(', ')}) = 0`,
      values: [wanted.map(w => w.tenantId), wanted.map(w => w.frameId)],
    })
  }
  return rows
}

const assignments = ({ set }: Change): string =>
  Object.entries(set)
    .map(([column, value]) => `${column} = ${value}`)
    .join(', ')

/** How many artifacts, and the bytes of their payloads. */
export const sumOf = (changed: Changed[]) => ({
  n: changed.reduce((sum, c) => sum + c.n, 0),
  bytes: changed.reduce((sum, c) => sum + c.bytes, 0),
})
