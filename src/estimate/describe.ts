// What attach would decide of a table and what stands in its way, asked before anything of ours is installed.
import pg from 'pg'
import { z } from 'zod'
import type { Queryable } from '../db/pool.ts'
import { LighterError, sqlState } from '../errors.ts'
import { answerSql, describedSetting, describeSourceBlock, readSqlLibrary } from './inline-sql.ts'

export interface Obstacle {
  found: string
  hint: string | null
  /** Attach refuses; else it warns. */
  isFatal: boolean
}

/** A table on the way to the one with the tenant. */
interface Step {
  /** Quoted and qualified. */
  parentSql: string
  parentKeyColumn: string
  /** Of the table before it. */
  column: string
}

/** What attach would record, as far as an estimate needs it. */
export interface DescribedSource {
  /** A row is known by one uuid. */
  uuidKey: boolean
  /** Null: it was not found, or all rows have one. */
  tenantColumn: string | null
  /** Empty: the tenant is in the table itself. */
  tenantPath: Step[]
  /** What stays in the row: a document with pointers, a stub, or null and an id in a column beside it. */
  mode: 'document' | 'stub' | 'whole'
  phase1Field: string | null
  phase2Kind: string
  envelopeKeys: string[]
  envelopeValueLimit: number
  thresholdBytes: number
  minBytes: number
  settleMs: number
  maxWaitMs: number
  shipAloneBytes: number
}

export interface Description {
  /** Null: of what is no table nothing can be said. */
  source: DescribedSource | null
  obstacles: Obstacle[]
}

const described = z.object({
  source: z.object({
    relation: z.string().nullable(),
    key_types: z.array(z.string()).nullable(),
    tenant_column: z.string().nullable(),
    parent_relations: z.array(z.string()).nullable(),
    parent_key_columns: z.array(z.string()).nullable(),
    parent_columns: z.array(z.string()).nullable(),
    mode: z.enum(['document', 'stub', 'whole']).nullable(),
    phase1_field: z.string().nullable(),
    phase2_kind: z.string().nullable(),
    envelope_keys: z.array(z.string()).nullable(),
    min_bytes: z.number().nullable(),
    settle_ms: z.number(),
    max_wait_ms: z.number(),
    ship_alone_bytes: z.number(),
  }),
  threshold_bytes: z.number(),
  envelope_value_limit: z.number().nullable(),
  obstacles: z
    .array(z.object({ problem: z.string(), hint: z.string().nullable(), is_fatal: z.boolean() }))
    .nullable(),
})

/**
 * Inside a transaction of the caller's, which may be read-only.
 * @param said options of attach by their names in SQL
 * @throws {LighterError} `check_not_portable`
 */
export async function describeTable(
  db: Queryable,
  target: number,
  column: string,
  said: Record<string, unknown>,
): Promise<Description> {
  const values = {
    target: `${target}::oid::regclass`,
    json_column: pg.escapeLiteral(column),
    said: pg.escapeLiteral(JSON.stringify(said)),
  }
  await db.query('savepoint described')
  let answer: string
  try {
    answer = (await mayAsk(db)) ? await askInstalled(db, values) : await askText(db, values)
  } catch (cause) {
    if (sqlState(cause)?.startsWith('42') !== true) throw cause
    await db.query('rollback to savepoint described')
    throw new LighterError('check_not_portable', 'the check of attach cannot be run before it is installed', {
      cause,
      hint: 'Run lighter migrate, then: lighter attach <table> --dry-run',
    })
  }
  const { source, obstacles, ...rest } = described.parse(JSON.parse(answer))
  return {
    obstacles: (obstacles ?? []).map(o => ({ found: o.problem, hint: o.hint, isFatal: o.is_fatal })),
    source:
      source.relation === null
        ? null
        : {
            uuidKey: source.key_types?.join() === 'uuid',
            tenantColumn: source.tenant_column,
            tenantPath: tenantPathOf(source),
            mode: source.mode ?? 'document',
            phase1Field: source.phase1_field,
            phase2Kind: source.phase2_kind ?? '',
            envelopeKeys: source.envelope_keys ?? [],
            envelopeValueLimit: rest.envelope_value_limit ?? 0,
            thresholdBytes: rest.threshold_bytes,
            minBytes: source.min_bytes ?? 0,
            settleMs: source.settle_ms,
            maxWaitMs: source.max_wait_ms,
            shipAloneBytes: source.ship_alone_bytes,
          },
  }
}

function tenantPathOf(source: z.infer<typeof described>['source']): Step[] {
  const { parent_relations: relations, parent_key_columns: keys, parent_columns: columns } = source
  return (relations ?? []).flatMap((parentSql, i) => {
    const [parentKeyColumn, column] = [keys?.[i], columns?.[i]]
    return parentKeyColumn && column ? [{ parentSql, parentKeyColumn, column }] : []
  })
}

/** Where it is installed, and this login may. */
async function mayAsk(db: Queryable): Promise<boolean> {
  const { rows } = await db.query<{ yes: boolean | null }>(
    `select has_schema_privilege(n.oid, 'usage') and has_function_privilege(p.oid, 'execute')
              and has_table_privilege(to_regclass('lighter.settings')::oid, 'select') as yes
       from pg_namespace n join pg_proc p on p.pronamespace = n.oid and p.proname = 'describe_source'
      where n.nspname = 'lighter'`,
  )
  return rows.length === 1 && rows[0]?.yes === true
}

type Values = Parameters<typeof describeSourceBlock>[1]

async function askInstalled(db: Queryable, { target, json_column, said }: Values): Promise<string> {
  const { rows } = await db.query<{ answer: string }>(
    `select (${answerSql('(found.source)', 'found.obstacles')})::text as answer
       from lighter.describe_source(${target}, ${json_column}, ${said}) found`,
  )
  return rows[0]?.answer ?? ''
}

async function askText(db: Queryable, values: Values): Promise<string> {
  await db.query(describeSourceBlock(await readSqlLibrary(), values))
  const { rows } = await db.query<{ answer: string }>(
    `select current_setting('${describedSetting}') as answer`,
  )
  return rows[0]?.answer ?? ''
}
