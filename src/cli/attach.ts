import type { Command } from 'commander'
import { requireCurrentSchema } from '../db/migrate.ts'
import { withAdminClient } from './admin-client.ts'
import { wholeNumber } from './options.ts'
import { print, printJson } from './output.ts'

interface AttachOptions {
  column: string
  tenantColumn?: string
  parentColumn?: string
  entityType?: string
  entityColumn?: string
  field?: string
  fieldKind?: string
  kind?: string
  envelopeKeys?: string
  threshold?: number
  skipTriggers: boolean
  json?: boolean
}

export function addAttach(program: Command): void {
  program
    .command('attach')
    .argument('<table>', 'such as public.conversation_messages')
    .description('watch a table: heavy JSON of its jsonb column is offloaded from now on')
    .option('--column <name>', 'the jsonb column', 'metadata')
    .option(
      '--tenant-column <name>',
      'uuid column with the tenant (default: tenant_id, here or in a table referred to)',
    )
    .option('--parent-column <name>', 'column that refers to the table with the tenant')
    .option('--entity-type <name>', 'what artifacts belong to, such as conversation')
    .option('--entity-column <name>', 'uuid column with its id')
    .option(
      '--field <name>',
      'field that is offloaded whatever its size; empty: none (default: tool_interactions)',
    )
    .option('--field-kind <kind>', 'kind of its artifacts')
    .option('--kind <kind>', 'kind of artifacts that hold the whole metadata')
    .option('--envelope-keys <a,b,c>', 'keys that stay in the row')
    .option('--threshold <bytes>', 'phase 2 threshold of this table', wholeNumber)
    .option('--no-skip-triggers', "let the table's other triggers see the rewrite")
    .option('--json', 'print one JSON object')
    .action(async (table: string, options: AttachOptions) => {
      const given: [string, unknown, string][] = [
        ['json_column', options.column, 'name'],
        ['tenant_column', options.tenantColumn, 'name'],
        ['parent_column', options.parentColumn, 'name'],
        ['entity_type', options.entityType, 'text'],
        ['entity_column', options.entityColumn, 'name'],
        ['phase1_field', options.field === '' ? null : options.field, 'text'],
        ['phase1_kind', options.fieldKind, 'text'],
        ['phase2_kind', options.kind, 'text'],
        ['envelope_keys', options.envelopeKeys?.split(',').filter(key => key !== ''), 'text[]'],
        ['threshold_bytes', options.threshold, 'int'],
        ['skip_triggers', options.skipTriggers, 'boolean'],
      ]
      const passed = given.filter(([, value]) => value !== undefined)
      const args = passed.map(([name, , type], i) => `${name} => $${i + 2}::${type}`).join(', ')
      const sourceId = await withAdminClient(async client => {
        await requireCurrentSchema(client)
        const { rows } = await client.query<{ id: number }>(
          `select lighter.attach($1::regclass, ${args}) as id`,
          [table, ...passed.map(([, value]) => value)],
        )
        return rows[0]?.id
      })
      if (options.json) printJson({ table, column: options.column, sourceId })
      else
        print(
          `attached ${table}.${options.column} as source ${sourceId}; rows written from now on are offloaded`,
        )
    })
}

export function addDetach(program: Command): void {
  program
    .command('detach')
    .argument('<table>', 'such as public.conversation_messages')
    .description('stop watching a table; rows already offloaded keep their pointers')
    .option('--column <name>', 'the jsonb column', 'metadata')
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
