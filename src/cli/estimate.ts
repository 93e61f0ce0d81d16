import { type Command, Option } from 'commander'
import { estimate } from '../estimate/estimate.ts'
import { estimateJson, renderEstimate } from '../estimate/render.ts'
import { withAdminClient } from './admin-client.ts'
import { bytesOrDefault, positiveNumber, wholeNumber } from './options.ts'
import { print, printJson } from './output.ts'

interface EstimateOptions {
  column: string
  tenantColumn?: string
  tenantPath?: string
  singleTenant?: boolean
  keyColumns?: string
  mode?: string
  createPointerColumn?: boolean
  field?: string
  threshold?: number
  minBytes?: number
  rowsPerSecond?: number
  timeColumn?: string
  tenants?: number
  keptDays: number
  samplePages: number
  sampleBytes: number
  timeout: number
  lockTimeout: number
  bucketPrice?: number
  putPrice?: number
  databasePrice?: number
  json?: boolean
}

export function addEstimate(program: Command): void {
  program
    .command('estimate')
    .argument('<table>', 'such as public.conversation_messages')
    .description('say what offloading a table would free and cost, before anything is installed; reads only')
    .option('--column <name>', 'the column: jsonb, json, text or bytea', 'metadata')
    .addOption(new Option('--mode <mode>', 'as for attach').choices(['document', 'stub', 'whole']))
    .option('--create-pointer-column', 'as for attach')
    .option('--key-columns <a,b>', 'as for attach')
    .option('--tenant-column <name>', 'as for attach')
    .option('--tenant-path <a,b>', 'as for attach')
    .option('--single-tenant', 'as for attach')
    .option('--field <name>', 'as for attach')
    .option('--threshold <bytes>', 'as for attach', wholeNumber)
    .option('--min-bytes <bytes>', 'as for attach', bytesOrDefault(0))
    .option(
      '--rows-per-second <n>',
      'rows written a second (default: by the times in the table)',
      positiveNumber,
    )
    .option(
      '--time-column <name>',
      'column with the time of the first write (default: found by type and name)',
    )
    .option('--tenants <n>', 'number of tenants (default: by the sample)', positiveNumber)
    .option('--kept-days <days>', 'days that rows are kept, for the bill', positiveNumber, 90)
    .option('--sample-pages <n>', 'pages of the table that are read at most', positiveNumber, 2000)
    .option(
      '--sample-bytes <bytes>',
      'bytes of stored values that are opened at most',
      positiveNumber,
      64_000_000,
    )
    .option('--timeout <seconds>', 'longest time for all reading', positiveNumber, 30)
    .option('--lock-timeout <seconds>', 'longest wait for a lock', positiveNumber, 2)
    .option(
      '--bucket-price <usd>',
      'a GB in the bucket for a month (default: lighter.prices, else 0.015)',
      positiveNumber,
    )
    .option(
      '--put-price <usd>',
      'a million class A operations (default: lighter.prices, else 4.50)',
      positiveNumber,
    )
    .option(
      '--database-price <usd>',
      "a GB of the database's disk for a month (default: lighter.prices, else 0.125)",
      positiveNumber,
    )
    .option('--json', 'print one JSON object')
    .addHelpText(
      'after',
      `
It needs SELECT on the table, and on the one with its tenants; a login of a read replica will do.
It runs in one read-only transaction. Exit status: 1 when attach would refuse the table.`,
    )
    .action(async (table: string, options: EstimateOptions) => {
      const said = Object.fromEntries(
        Object.entries({
          tenant_column: options.tenantColumn,
          tenant_path: options.tenantPath?.split(','),
          single_tenant: options.singleTenant,
          key_columns: options.keyColumns?.split(','),
          mode: options.mode,
          create_pointer_column: options.createPointerColumn,
          phase1_field: options.field,
          threshold_bytes: options.threshold,
          min_bytes: options.minBytes,
        }).filter(([, value]) => value !== undefined),
      )
      const result = await withAdminClient(client =>
        estimate(client, {
          table,
          column: options.column,
          said,
          limits: {
            pages: options.samplePages,
            bytes: options.sampleBytes,
            timeoutMs: options.timeout * 1000,
          },
          lockTimeoutMs: options.lockTimeout * 1000,
          rowsPerSecond: options.rowsPerSecond ?? null,
          timeColumn: options.timeColumn ?? null,
          tenants: options.tenants ?? null,
          keptDays: options.keptDays,
          prices: {
            bucketGbMonth: options.bucketPrice,
            classAMillion: options.putPrice,
            databaseGbMonth: options.databasePrice,
          },
        }),
      )
      if (options.json) printJson(estimateJson(result))
      else print(renderEstimate(result))
      if (result.obstacles.some(obstacle => obstacle.isFatal)) process.exitCode = 1
    })
}
