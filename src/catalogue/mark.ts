// What changes the state of many artifacts at once: of a loose one its row, of one in a frame its exception. In one
// statement, so that each frame is counted once.

/** Columns of the state, and the SQL of their new values. */
export type Marks = Partial<Record<'released_at' | 'deleted_at' | 'deleted_reason' | 'purged_at', string>>

/**
 * SQL: common table expressions that change the artifacts in `due`, and one called `name` with those that were changed:
 * tenant_id, id, frame_id, r2_key, size_bytes. They stand behind `with due as (…),`, where `due` has of
 * public.artifact_refs: tenant_id, id, frame_id, ordinal, r2_key, size_bytes.
 *
 * Of two that mark the same artifact the second looks again.
 * @param still SQL: what must hold still, of the row `x` as it is by then, a loose artifact or an exception
 * @param locked what becomes of artifacts whose frame somebody has locked
 * @param may `write`: also of artifacts that have no exception yet; `change`: only of those that have one
 */
export function markSql(
  name: string,
  marks: Marks,
  still: string,
  may: 'write' | 'change',
  locked: 'skip' | 'wait' = 'skip',
): string {
  const columns = Object.keys(marks)
  const values = Object.values(marks)
  const set = columns.map((column, i) => `${column} = ${values[i]}`).join(', ')
  const ofFrames =
    may === 'write'
      ? `insert into lighter.frame_exceptions as x (tenant_id, frame_id, ordinal, ${columns.join(', ')})
         select d.tenant_id, d.frame_id, d.ordinal, ${values.join(', ')}
           from due d join ${name}_locked f on f.tenant_id = d.tenant_id and f.id = d.frame_id
          where d.ordinal is not null
          order by d.tenant_id, d.frame_id, d.ordinal
             on conflict (tenant_id, frame_id, ordinal) do update set ${set}
          where ${still}
         returning x.tenant_id, x.frame_id, x.ordinal`
      : `update lighter.frame_exceptions x set ${set}
           from due d join ${name}_locked f on f.tenant_id = d.tenant_id and f.id = d.frame_id
          where x.tenant_id = d.tenant_id and x.frame_id = d.frame_id and x.ordinal = d.ordinal and ${still}
         returning x.tenant_id, x.frame_id, x.ordinal`
  return `
    ${name}_loose as (
      update lighter.loose_artifacts x set ${set}
        from due d
       where d.ordinal is null and x.tenant_id = d.tenant_id and x.id = d.id and ${still}
      returning d.tenant_id, d.id, d.frame_id, d.r2_key, d.size_bytes
    ),
    -- As everybody does who changes an artifact of a frame: the frame first. What somebody holds has its turn later, or is waited for.
    ${name}_locked as materialized (
      select f.tenant_id, f.id
        from (select distinct d.tenant_id, d.frame_id from due d where d.ordinal is not null) d
        join lighter.frames f on f.tenant_id = d.tenant_id and f.id = d.frame_id
       order by f.tenant_id, f.id
         for no key update of f ${locked === 'skip' ? 'skip locked' : ''}
    ),
    ${name}_of_frames as (${ofFrames}),
    ${name} as (
      select * from ${name}_loose
      union all
      select d.tenant_id, d.id, d.frame_id, d.r2_key, d.size_bytes
        from due d
        join ${name}_of_frames f on f.tenant_id = d.tenant_id and f.frame_id = d.frame_id and f.ordinal = d.ordinal
    )`
}

/** The columns of `due` for `markSql`, of public.artifact_refs as `a`. */
export const dueColumns = 'a.tenant_id, a.id, a.frame_id, a.ordinal, a.r2_key, a.size_bytes'
