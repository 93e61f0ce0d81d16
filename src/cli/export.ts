import type { Command } from 'commander'
import { loadConfig } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool } from '../db/pool.ts'
import { exportTenant } from '../export/export.ts'
import { openTarget } from '../export/target.ts'
import { asTenantId } from '../ids.ts'
import { openStore } from '../store/object-store.ts'
import { takeSweepLock } from '../sweeps/lock.ts'
import { formatBytes, formatCount, print, printJson } from './output.ts'
import { createProgress } from './progress.ts'
import { describe } from './sweep.ts'
import { withTenant } from './tenant-argument.ts'

const maxFileBytes = 256 * 1024 * 1024

export function addExport(program: Command): void {
  program
    .command('export')
    .description("write a tenant's artifacts to plain files: JSON lines and a manifest")
    .requiredOption('--tenant <tenant>', 'the tenant: its uuid, or its name')
    .requiredOption('--to <where>', 'a directory, or s3://bucket/prefix at the endpoint of R2_…')
    .option('--json', 'print one JSON object')
    .addHelpText(
      'after',
      '\nExit status: 1 when it was stopped or a payload is damaged; 2 when another process exports there.',
    )
    .action(async (options: { tenant: string; to: string; json?: boolean }) => {
      const config = loadConfig(process.env)
      const target = openTarget(options.to, config.store, config.offload.partBytes)
      const pool = createPool(config.databaseUrl, 2, () => undefined, { unlimited: true })
      const store = openStore(config.store)
      const stop = new AbortController()
      process.once('SIGINT', () => stop.abort())
      process.once('SIGTERM', () => stop.abort())
      const progress = createProgress(options.json === true)
      try {
        await requireCurrentSchema(pool)
        const { tenant } = await withTenant(pool, options)
        // Two at once would write the same files.
        const { lock, holder } = await takeSweepLock(config.listenDatabaseUrl, `export ${target.name}`)
        if (lock === null) {
          if (options.json) printJson({ outcome: 'busy', holder })
          else print(`another process exports to ${target.name}: ${holder}`)
          process.exitCode = 2
          return
        }
        try {
          const manifest = await exportTenant(
            {
              pool,
              store,
              target,
              batchBytes: config.offload.batchBytes,
              batchSize: config.sweeps.batchSize,
              maxFileBytes,
              signal: stop.signal,
              onProgress: counts => progress.update(describe(counts)),
            },
            asTenantId(tenant),
          )
          progress.end()
          const outcome = manifest.finished_at === null ? 'stopped' : 'done'
          const counts = {
            artifacts: manifest.artifacts,
            payload_bytes: manifest.payload_bytes,
            files: manifest.files.length,
            blobs: manifest.blobs.length,
            damaged: manifest.damaged.length,
            gone: manifest.gone,
          }
          const asOf = manifest.list?.as_of ?? null
          if (options.json) printJson({ tenant, to: target.name, outcome, as_of: asOf, counts })
          else {
            print(
              `${formatCount(counts.artifacts)} artifact(s), ${formatBytes(counts.payload_bytes)}, in ${formatCount(counts.files + counts.blobs)} file(s) at ${target.name}`,
            )
            if (asOf !== null)
              print(
                `all that was committed by ${asOf}${counts.gone > 0 ? `, but for ${formatCount(counts.gone)} that went meanwhile` : ''}`,
              )
            if (counts.damaged > 0)
              print(`${formatCount(counts.damaged)} damaged artifact(s) are not in it: see manifest.json`)
            if (outcome === 'stopped') print('stopped in the middle; run it again to go on')
          }
          if (outcome === 'stopped' || counts.damaged > 0) process.exitCode = 1
        } finally {
          await lock.release()
        }
      } finally {
        progress.end()
        await pool.end()
        store.close()
        target.close()
      }
    })
}
