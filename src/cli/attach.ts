import { type Command, Option } from 'commander'
import pg from 'pg'
import { requireCurrentSchema } from '../db/migrate.ts'
import { describeDeparture, type Timing, timingSql } from '../reports/departure.ts'
import { waitsForOthers } from '../source/sources.ts'
import { withAdminClient } from './admin-client.ts'
import { bytesOrDefault, durationOrDefault, wholeNumber } from './options.ts'
import { print, printJson } from './output.ts'

interface AttachOptions {
  column: string
  mode?: string
  pointerColumn?: string
  createPointerColumn?: boolean
  keyColumns?: string
  singleTenant?: boolean
  tenantColumn?: string
  tenantNamespace?: string
  tenantPath?: string
  entityType?: string
  entityColumn?: string
  field?: string
  fieldKind?: string
  kind?: string
  envelopeKeys?: string
  threshold?: number
  minBytes?: number
  settleFor?: string
  maxWait?: string
  shipAlone?: number
  when?: string
  trigger?: boolean
  skipTriggers?: boolean
  allowDependents?: boolean
  trustOwner?: boolean
  guard?: string
  dryRun?: boolean
  json?: boolean
}

/** A line of lighter.check_attach. */
interface ReportLine {
  what: 'decided' | 'changed' | 'warning' | 'obstacle'
  name: string | null
  found: string
  hint: string | null
}

export function addAttach(program: Command): void {
  program
    .command('attach')
    .argument('<table>', 'such as public.conversation_messages')
    .description('watch a table: heavy values of its column are offloaded from now on')
    .option('--column <name>', 'the column: jsonb, json, text or bytea', 'metadata')
    .addOption(
      new Option(
        '--mode <mode>',
        'what stays in the row: a document with pointers in it (jsonb), a stub in the place of the value (json, text, jsonb), or null, with the id in a pointer column (default: by type document, stub, or whole for bytea)',
      ).choices(['document', 'stub', 'whole']),
    )
    .option('--pointer-column <name>', "mode whole: uuid column for the artifacts' ids")
    .option('--create-pointer-column', 'mode whole: make that column; default name: <column>_artifact_id')
    .option(
      '--key-columns <a,b>',
      'columns of the unique index that tells rows apart (default: the primary key, else the narrowest that fits)',
    )
    .option(
      '--tenant-column <name>',
      'column with the tenant, a uuid, text or whole number (default: tenant_id, here or in a table referred to)',
    )
    .option(
      '--tenant-namespace <uuid>',
      'names of tenants mean the same as in other tables with this one (default: by the column they come from)',
    )
    .option('--single-tenant', 'all rows have one tenant')
    .option('--no-single-tenant', 'each row has its own (default)')
    .option(
      '--tenant-path <a,b>',
      'columns that refer to the table with the tenant, one table after the other',
    )
    .option('--entity-type <name>', 'what artifacts belong to, such as conversation')
    .option('--entity-column <name>', 'uuid column with its id; empty: none')
    .option(
      '--field <name>',
      'field that is offloaded whatever its size; empty: none (default: tool_interactions)',
    )
    .option('--field-kind <kind>', 'kind of its artifacts')
    .option('--kind <kind>', 'kind of artifacts that hold the whole metadata, or value')
    .option('--envelope-keys <a,b,c>', 'keys that stay in the row; empty: none')
    .option('--threshold <bytes>', 'phase 2 threshold of this table; 0: the one of all tables', wholeNumber)
    .option('--min-bytes <bytes>', 'a smaller field stays in its row; default: 0', bytesOrDefault(0))
    .option(
      '--settle-for <duration>',
      'rows stay for so long after their last write: 0, 30s, 1m; default: as all tables',
      durationOrDefault,
    )
    .option(
      '--max-wait <duration>',
      'rows wait for so long at most, from their first write, for their object to fill: 0, 24h, 2d; default: as all tables',
      durationOrDefault,
    )
    .option(
      '--ship-alone <bytes>',
      'a row with so many bytes waits for no others (1024 or more); default: as all tables',
      bytesOrDefault(1024),
    )
    .option(
      '--when <condition>',
      "rows leave only while this SQL condition over their columns holds, such as: status = 'finished'; empty: none",
    )
    .option('--trigger', 'a trigger queues rows as they are written (default)')
    .option('--no-trigger', 'no trigger on the table: only the sweep scan finds rows')
    .option('--skip-triggers', "keep the table's other triggers from seeing the rewrite (default)")
    .option('--no-skip-triggers', "let the table's other triggers see the rewrite")
    .option('--allow-dependents', 'accept indexes, constraints and policies that read what leaves the row')
    .option('--no-allow-dependents', 'refuse them (default)')
    .option('--trust-owner', 'accept that whoever owns the table may do whatever the daemon may')
    .option('--no-trust-owner', 'refuse a table of a role that may not act as our owner (default)')
    .addOption(
      new Option(
        '--guard <mode>',
        'what happens at an update that edits inside an offloaded document, to no effect (default: off)',
      ).choices(['off', 'warn', 'error']),
    )
    .option('--dry-run', 'say what would be decided and what stands in the way; attach nothing')
    .option('--json', 'print one JSON object')
    .addHelpText(
      'after',
      '\nOf an attached table only the options that are given change.\nExit status of --dry-run: 1 when something stands in the way.',
    )
    .action(async (table: string, options: AttachOptions) => {
      const { report, statement, sourceId, timing } = await withAdminClient(client =>
        attach(client, table, options),
      )
      if (options.json) printJson(reportJson(table, options, report, statement, sourceId))
      else {
        print(renderReport(`${table}.${options.column}`, report, statement, sourceId))
        if (timing !== null)
          print(
            `${describeDeparture('Rows written from now on', timing)}${waitsForOthers(timing) ? ' To let them leave now: lighter flush.' : ''} To see where a row is: lighter status ${table} <id>`,
          )
      }
      if (sourceId === null && report.some(line => line.what === 'obstacle')) process.exitCode = 1
    })
}

/** What was found, and how to say it in SQL; the source's id and when its rows leave, null after a dry run. @throws with all obstacles */
async function attach(
  client: pg.Client,
  table: string,
  options: AttachOptions,
): Promise<{ report: ReportLine[]; statement: string; sourceId: number | null; timing: Timing | null }> {
  await requireCurrentSchema(client)
  const given: [string, unknown, string][] = [
    ['json_column', options.column, 'name'],
    ['mode', options.mode, 'text'],
    ['pointer_column', options.pointerColumn, 'name'],
    ['create_pointer_column', options.createPointerColumn, 'boolean'],
    ['tenant_column', options.tenantColumn, 'name'],
    ['tenant_path', options.tenantPath?.split(',').filter(name => name !== ''), 'name[]'],
    ['key_columns', options.keyColumns?.split(',').filter(name => name !== ''), 'name[]'],
    ['tenant_namespace', options.tenantNamespace, 'uuid'],
    ['single_tenant', options.singleTenant, 'boolean'],
    ['entity_type', options.entityType, 'text'],
    ['entity_column', options.entityColumn, 'name'],
    ['phase1_field', options.field, 'text'],
    ['phase1_kind', options.fieldKind, 'text'],
    ['phase2_kind', options.kind, 'text'],
    ['envelope_keys', options.envelopeKeys?.split(',').filter(key => key !== ''), 'text[]'],
    ['threshold_bytes', options.threshold, 'int'],
    ['min_bytes', options.minBytes, 'int'],
    ['settle_for', options.settleFor, 'interval'],
    ['max_wait', options.maxWait, 'interval'],
    ['ship_alone_bytes', options.shipAlone, 'int'],
    ['when_sql', options.when, 'text'],
    ['trigger', options.trigger, 'boolean'],
    ['skip_triggers', options.skipTriggers, 'boolean'],
    ['allow_dependents', options.allowDependents, 'boolean'],
    ['trust_owner', options.trustOwner, 'boolean'],
    ['guard', options.guard, 'text'],
  ]
  const passed = given.filter(([, value]) => value !== undefined)
  const args = passed.map(([name, , type], i) => `${name} => $${i + 2}::${type}`).join(', ')
  const values = [table, ...passed.map(([, value]) => value)]
  // The report says all that attach would tell by notices.
  await client.query(`begin; set local client_min_messages = 'error'`)
  const { rows: report } = await client.query<ReportLine>(
    `select what, name, found, hint from lighter.check_attach($1::regclass, ${args})`,
    values,
  )
  let sourceId: number | null = null
  if (!options.dryRun) {
    const { rows } = await client.query<{ id: number }>(
      `select lighter.attach($1::regclass, ${args}) as id`,
      values,
    )
    sourceId = rows[0]?.id ?? null
  }
  const { rows: timings } = await client.query<Timing>(timingSql, [sourceId])
  await client.query('commit')
  const literals = passed.map(([name, value, type]) => `, ${name} => ${literal(value, type)}`).join('')
  const statement = `select lighter.attach(${pg.escapeLiteral(table)}${literals});`
  return { report, statement, sourceId, timing: timings[0] ?? null }
}

function literal(value: unknown, type: string): string {
  if (typeof value === 'number' || typeof value === 'boolean') return String(value)
  if (!Array.isArray(value)) return pg.escapeLiteral(String(value))
  return `array[${value.map(each => pg.escapeLiteral(String(each))).join(', ')}]::${type}`
}

function reportJson(
  table: string,
  options: AttachOptions,
  report: ReportLine[],
  statement: string,
  sourceId: number | null,
) {
  const named = (what: ReportLine['what']) =>
    Object.fromEntries(report.filter(line => line.what === what).map(line => [line.name, line.found]))
  const said = (what: ReportLine['what']) =>
    report.filter(line => line.what === what).map(({ found, hint }) => ({ found, hint }))
  return {
    table,
    column: options.column,
    sourceId,
    statement,
    decided: named('decided'),
    changed: named('changed'),
    warnings: said('warning'),
    obstacles: said('obstacle'),
  }
}

function renderReport(
  name: string,
  report: ReportLine[],
  statement: string,
  sourceId: number | null,
): string {
  const of = (what: ReportLine['what']) => report.filter(line => line.what === what)
  const said = (line: ReportLine) => `${line.what}: ${line.found}${line.hint ? `\n  hint: ${line.hint}` : ''}`
  const obstacles = of('obstacle')
  const last =
    sourceId !== null
      ? `attached ${name} as source ${sourceId}`
      : obstacles.length === 0
        ? `${name} can be attached; nothing was changed`
        : `${name} cannot be attached: ${obstacles.length} obstacle(s)`
  return [
    ...of('decided').map(line => `${(line.name ?? '').padEnd(18)}${line.found}`),
    ...of('changed').map(line => `changed: ${line.name}: ${line.found}`),
    ...of('warning').map(said),
    ...obstacles.map(said),
    // For whoever attaches tables in migrations.
    ...(sourceId === null && obstacles.length === 0 ? [`in SQL: ${statement}`] : []),
    last,
  ].join('\n')
}

export function addDetach(program: Command): void {
  program
    .command('detach')
    .argument('<table>', 'such as public.conversation_messages')
    .description('stop watching a table; rows already offloaded keep their pointers')
    .option('--column <name>', 'the column', 'metadata')
    .option('--json', 'print one JSON object')
    .action(async (table: string, options: { column: string; json?: boolean }) => {
      const detached = await withAdminClient(async client => {
        await requireCurrentSchema(client)
        const { rows } = await client.query<{ detached: boolean }>(
          'select lighter.detach($1::regclass, $2::name) as detached',
          [table, options.column],
        )
        return rows[0]?.detached === true
      })
      if (options.json) printJson({ table, column: options.column, detached })
      else
        print(
          detached ? `detached ${table}.${options.column}` : `${table}.${options.column} was not attached`,
        )
    })
}
