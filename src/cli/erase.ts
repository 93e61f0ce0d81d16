import { createInterface } from 'node:readline/promises'
import { type Command, InvalidArgumentError } from 'commander'
import { pino } from 'pino'
import { loadConfig } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool } from '../db/pool.ts'
import { runErasure } from '../erase/run.ts'
import { describeScope, type EraseScope, refuseIfOnHold } from '../erase/scope.ts'
import { type Survey, surveyErasure } from '../erase/survey.ts'
import { LighterError } from '../errors.ts'
import { asTenantId } from '../ids.ts'
import { openStore } from '../store/object-store.ts'
import { uuid } from './options.ts'
import { formatBytes, formatCount, print, printJson } from './output.ts'
import { createProgress } from './progress.ts'
import { describe } from './sweep.ts'
import { withTenant } from './tenant-argument.ts'

export function addErase(program: Command): void {
  program
    .command('erase')
    .description('remove everything stored for a tenant, or for one of its entities, for good')
    .requiredOption('--tenant <tenant>', 'the tenant: its uuid, or its name')
    .option('--entity <type:id>', 'only what belongs to this entity, such as conversation:<uuid>', entity)
    .option('--yes', 'really do it, without being asked')
    .option('--dry-run', 'say what would go and do nothing')
    .option('--json', 'print one JSON object')
    .addHelpText(
      'after',
      '\nExit status: 1 when the proof is not complete; 2 when another process erases or compacts.',
    )
    .action(
      async (options: {
        tenant: string
        entity?: { type: string; id: string }
        yes?: boolean
        dryRun?: boolean
        json?: boolean
      }) => {
        const config = loadConfig(process.env)
        const pool = createPool(config.databaseUrl, 4, () => undefined, { unlimited: true })
        const store = openStore(config.store)
        const stop = new AbortController()
        process.once('SIGINT', () => stop.abort())
        process.once('SIGTERM', () => stop.abort())
        const progress = createProgress(options.json === true)
        try {
          await requireCurrentSchema(pool)
          const { tenant } = await withTenant(pool, options)
          const scope: EraseScope = { tenantId: asTenantId(tenant), entity: options.entity ?? null }
          await refuseIfOnHold(pool, scope)
          const survey = await surveyErasure(pool, store.prefix, scope)
          const header = { tenant: scope.tenantId, entity: scope.entity }
          if (options.dryRun) {
            if (options.json) printJson({ ...header, dry_run: true, would_erase: survey })
            else print(`${sayWhat(scope, survey)}\nnothing was changed`)
            return
          }
          if (!options.yes) await confirm(scope, survey)
          const { outcome, by, counts, proof, holder } = await runErasure(scope, {
            pool,
            lockUrl: config.listenDatabaseUrl,
            store,
            config: config.sweeps,
            offload: config.offload,
            log: pino({ level: 'silent' }),
            signal: stop.signal,
            onProgress: counts => progress.update(describe(counts)),
          })
          progress.end()
          if (options.json) {
            printJson({ ...header, outcome, rows_left_pointing: survey.rows_pointing, counts, proof })
          } else if (outcome === 'busy') {
            print(`another process runs ${by}: ${holder}. Try again when it is done`)
          } else {
            print(`${describeScope(scope)}: ${describe(counts)}`)
            if (survey.rows_pointing > 0)
              print(`${formatCount(survey.rows_pointing)} row(s) still hold pointers and hydrate no more`)
            if (proof === null) print('stopped in the middle; run it again to go on')
            else
              print(
                proof.complete
                  ? `proof: nothing found (${formatCount(proof.objects_deleted_again_later)} object(s) will be deleted once more by the orphans sweep, against late writes)`
                  : `NOT COMPLETE: ${describe({ ...proof, complete: 0 })}. Is something still writing, or outside the prefix, or damaged? Stop it and run this again`,
              )
          }
          if (outcome === 'busy') process.exitCode = 2
          else if (proof?.complete !== true) process.exitCode = 1
        } finally {
          progress.end()
          await pool.end()
          store.close()
        }
      },
    )
}

function entity(value: string): { type: string; id: string } {
  const at = value.lastIndexOf(':')
  if (at < 1) throw new InvalidArgumentError('not of the form type:uuid')
  return { type: value.slice(0, at), id: uuid(value.slice(at + 1)) }
}

function sayWhat(scope: EraseScope, survey: Survey): string {
  const lines = [
    `${describeScope(scope)}: ${formatCount(survey.artifacts)} artifact(s), ${formatBytes(survey.payload_bytes)}, in ${formatCount(survey.objects)} object(s) of its own`,
  ]
  if (survey.payloads_of_no_artifact > 0)
    lines.push(
      `${formatCount(survey.payloads_of_no_artifact)} payload(s) in packs that are no artifacts (any more) go with them`,
    )
  if (survey.objects_shared > 0)
    lines.push(
      `${formatCount(survey.objects_shared)} pack(s) shared with others are written anew without them`,
    )
  if (survey.rows_pointing > 0)
    lines.push(
      `${formatCount(survey.rows_pointing)} row(s) of the application hold pointers to them: the rows stay, and will no longer hydrate`,
    )
  if (survey.outside_prefix > 0)
    lines.push(
      `${formatCount(survey.outside_prefix)} artifact(s) point outside the tenant's prefix and are not touched`,
    )
  return lines.join('\n')
}

/** On a terminal the tenant's id is typed; elsewhere only --yes will do. */
async function confirm(scope: EraseScope, survey: Survey): Promise<void> {
  const what = sayWhat(scope, survey)
  if (!process.stdin.isTTY) {
    throw new LighterError('not_confirmed', `this can not be undone\n${what}`, {
      hint: 'If that is what you want, say so with --yes.',
    })
  }
  process.stderr.write(`${what}\n`)
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  try {
    const typed = await terminal.question('This can not be undone. Type the id of the tenant to go on: ')
    if (typed.trim().toLowerCase() !== scope.tenantId) {
      throw new LighterError('not_confirmed', 'that is not the id of the tenant; nothing was done')
    }
  } finally {
    terminal.close()
  }
}
