// What is watched, as the steps need it.

import type { Queryable } from '../db/pool.ts'
import type { ColumnTypeName } from './column-types.ts'
import type { KeyFormName } from './key-types.ts'
import type { ModeName } from './modes.ts'

/** A column of a row's key. */
export interface KeyColumn {
  name: string
  /** To cast to, quoted and qualified: of a domain the type that it is made of. */
  type: string
  form: KeyFormName
}

/** A table on the way to the tenant. */
export interface Parent {
  tableSql: string
  isPartitioned: boolean
  keyColumn: string
  /** Column of the table before it, which refers to it. */
  column: string
}

export interface Source {
  id: number
  /** Which state of the source this is, for `isSourceSql`. */
  version: string
  /** Ids under which the same column was attached before: artifacts of its rows have them too. */
  formerIds: number[]
  /** Quoted and qualified, ready to stand in a statement; so are the other `…Sql` names. */
  tableSql: string
  /** The search_path for the application's own code, which often names its tables and functions without a schema. */
  applicationPath: string
  /** Its rows are those of its partitions; a plain table's are its own, and not those of tables that inherit. */
  isPartitioned: boolean
  jsonColumn: string
  columnType: ColumnTypeName
  /** What stays in the row, see modes.ts. */
  mode: ModeName
  /** Mode whole: the column with the artifacts' ids. */
  pointerColumn: string | null
  /** At least one column, in the order in which keys are written. */
  key: KeyColumn[]
  /** The text of the key of row `m`: use `rowKeySql`. */
  keySql: string
  /** Null where all rows have `singleTenant`. */
  tenantColumn: string | null
  /** Set: the column holds names, each a tenant in this namespace. */
  tenantNamespace: string | null
  singleTenant: string | null
  /** Over which the tenant is found, one after the other. None: the table has it itself. */
  parents: Parent[]
  entityType: string | null
  entityColumn: string | null
  phase1Field: string | null
  /**
   * Names of pointers of this source and of all others, those that were detached among them: a row may have been
   * copied with those of another one, or still hold them from when its table was attached in another way.
   */
  pointerNames: string[]
  /** Names of pointers that some column holds in the place of a value; none where no source is of mode stub. */
  stubNames: string[]
  /** Names of the pointer columns of all sources: a row may have been copied into a document, or into a text. */
  pointerColumns: string[]
  phase1Kind: string
  phase2Kind: string
  envelopeKeys: string[]
  envelopeValueLimit: number
  thresholdBytes: number
  /** A field that is stored in fewer bytes stays in its row. */
  minBytes: number
  /** A row leaves no sooner than so long after its last write. */
  settleMs: number
  /** It waits for others no longer than this, where they are enough. */
  maxWaitMs: number
  /** A payload of so many bytes waits for no others. */
  shipAloneBytes: number
  /** Function that is true of a row that may leave, see sql/functions/19_when.sql: use `mayLeaveSql`. Null: all may. */
  whenFunction: string | null
  /** What it takes. */
  whenColumns: string[]
  /** The condition for people. */
  whenText: string | null
  /** False: it has no trigger, and rows are found by the sweep scan. */
  hasTrigger: boolean
  /** The sweep scan looks through it. */
  isScanned: boolean
  /** The rows of an index are read by it; else all. */
  scansByIndex: boolean
  paused: boolean
  /** The rewrite must, and may, keep other triggers of the table from firing. */
  quietRewrite: boolean
  /**
   * Row-level security may hide rows of the table, or of its parent, from the daemon: what it does not see need not be
   * gone. What to do about it; null when all are seen.
   */
  rowsHidden: string | null
}

/**
 * All sources but those of which something is missing that the offload needs (lighter.missing_parts). A handful of rows; callers may keep them for seconds: what was planned by a stale one is not committed,
 * and makes a statement fail, not lie.
 */
export async function loadSources(db: Queryable): Promise<Map<number, Source>> {
  const { rows } = await db.query<Source>(`
    select s.id,
           stored.xmin::text as version,
           array(select f.id from lighter.former_sources f
                  where f.relation = s.relation
                    and lighter.name_of_column(f.relation, f.json_attnum, f.json_column, f.relation_oid = f.relation::oid)
                        = s.json_column
                    and f.mode = s.mode
                    and lighter.name_of_column(f.relation, f.pointer_attnum, f.pointer_column, f.relation_oid = f.relation::oid)
                        is not distinct from s.pointer_column
                  order by f.id) as "formerIds",
           format('%I.%I', n.nspname, c.relname) as "tableSql",
           format('pg_catalog, %I, public', n.nspname) as "applicationPath",
           c.relkind = 'p' as "isPartitioned",
           s.json_column as "jsonColumn",
           s.column_type as "columnType",
           s.mode,
           s.pointer_column as "pointerColumn",
           keyed.columns as key,
           lighter.row_key_sql('m', s.key_columns, keyed.forms) as "keySql",
           s.tenant_column as "tenantColumn",
           s.tenant_namespace as "tenantNamespace",
           s.single_tenant as "singleTenant",
           (select coalesce(json_agg(json_build_object('tableSql', format('%I.%I', pn.nspname, pc.relname), 'isPartitioned', pc.relkind = 'p',
                     'keyColumn', p.key_column, 'column', p.column_name) order by p.n), '[]')
              from unnest(s.parent_relations, s.parent_key_columns, s.parent_columns) with ordinality p(relation, key_column, column_name, n)
              join pg_class pc on pc.oid = p.relation join pg_namespace pn on pn.oid = pc.relnamespace) as parents,
           s.entity_type as "entityType",
           s.entity_column as "entityColumn",
           s.phase1_field as "phase1Field",
           array(select o.phase1_field || '_ref' from lighter.sources o where o.phase1_field is not null
                 union
                 select f.phase1_field || '_ref' from lighter.former_sources f where f.phase1_field is not null
                 order by 1)
             || array['artifact_metadata_ref'] as "pointerNames",
           case when exists (select from lighter.sources o where o.mode = 'stub')
                  or exists (select from lighter.former_sources f where f.mode = 'stub') then array['artifact_ref'] else '{}' end as "stubNames",
           array(select o.pointer_column::text from lighter.sources o where o.pointer_column is not null
                 union
                 select f.pointer_column::text from lighter.former_sources f where f.pointer_column is not null
                 order by 1) as "pointerColumns",
           s.phase1_kind as "phase1Kind",
           s.phase2_kind as "phase2Kind",
           s.envelope_keys as "envelopeKeys",
           lighter.envelope_value_limit(s) as "envelopeValueLimit",
           lighter.effective_threshold(s) as "thresholdBytes",
           s.min_bytes as "minBytes",
           extract(epoch from coalesce(s.settle_for, d.settle_for))::float8 * 1000 as "settleMs",
           extract(epoch from coalesce(s.max_wait, d.max_wait))::float8 * 1000 as "maxWaitMs",
           coalesce(s.ship_alone_bytes, d.ship_alone_bytes) as "shipAloneBytes",
           case when s.when_sql is not null then format('lighter.when_%s', s.id) end as "whenFunction",
           coalesce(s.when_columns, '{}')::text[] as "whenColumns",
           s.when_sql as "whenText",
           s.trigger as "hasTrigger",
           s.when_varies or not s.trigger as "isScanned",
           lighter.scan_index(s) is not null as "scansByIndex",
           s.paused,
           s.skip_triggers
             and has_parameter_privilege('session_replication_role', 'set')
             and exists (
               select from pg_trigger t
                where t.tgrelid = s.relation and not t.tgisinternal
                  and t.tgname not like 'lighter\\_%') as "quietRewrite",
           (select h.remedy from lighter.hidden_tables(array[s.id]) h where h.source_id = s.id limit 1) as "rowsHidden"
      from lighter.sources stored
     cross join lateral lighter.with_current_names(stored) s
     cross join lateral (
       select json_agg(json_build_object('name', k.column_name, 'form', k.form,
                'type', case k.form when 'text' then 'text' else lighter.type_name(k.base) end) order by k.place) as columns,
              array_agg(k.form order by k.place) as forms
         from lighter.key_parts_of(s) k) keyed
     cross join lighter.settings d
      join pg_class c on c.oid = s.relation
      join pg_namespace n on n.oid = c.relnamespace
     where not exists (select from lighter.missing_parts p where p.source_id = s.id and p.stops_offload)
     order by s.id`)
  return new Map(rows.map(row => [row.id, row]))
}

/** Whether rows wait before they leave: until they are settled, or until their pack is worth a PUT. */
export const waitsForOthers = (source: Pick<Source, 'settleMs' | 'maxWaitMs'>): boolean =>
  source.settleMs > 0 || source.maxWaitMs > 0
