// Postgres and R2 on this machine, for `lighter dev`, the demo and the tests: nothing but npm packages.
// What is stored stays in one folder and is there at the next start, however the last run ended.
// Neither server outlives the process that started it, and neither reaches beyond 127.0.0.1.
import path from 'node:path'
import { lastPorts, rememberPorts } from './ports.ts'
import { type RunningPostgres, startPostgres } from './postgres.ts'
import { expectNoServer } from './postmaster-file.ts'
import { type RunningR2, startR2 } from './r2.ts'

export interface EmbeddedOptions {
  /** Holds `postgres/`, `postgres.log`, `r2/` and `ports.json`. */
  dir: string
  bucket?: string
  /** Postgres settings, over the defaults. */
  settings?: Record<string, string>
  /** Those of the last run on the directory by default, or free ones where those are taken. */
  ports?: { postgres?: number; r2?: number }
}

export interface Embedded {
  readonly postgres: RunningPostgres
  readonly r2: RunningR2
  stop(): Promise<void>
}

/** Starts both at once. When one fails to start the other is stopped, and the failure thrown. */
export async function startEmbedded(options: EmbeddedOptions): Promise<Embedded> {
  const { dir, bucket = 'lighter-dev', settings = {}, ports = {} } = options
  const dataDir = path.join(dir, 'postgres')
  // Before anything touches the directory: somebody may be using it, and its R2 can't tell.
  await expectNoServer(dataDir)
  const last = await lastPorts(dir)
  const [postgres, r2] = await Promise.allSettled([
    startPostgres({
      dataDir,
      settings,
      ...(ports.postgres ? { port: ports.postgres } : {}),
      ...(last.postgres ? { preferredPort: last.postgres } : {}),
    }),
    startR2({
      bucket,
      persistDir: path.join(dir, 'r2'),
      ...(ports.r2 ? { port: ports.r2 } : {}),
      ...(last.r2 ? { preferredPort: last.r2 } : {}),
    }),
  ])
  if (postgres.status === 'rejected') {
    if (r2.status === 'fulfilled') await r2.value.stop()
    throw postgres.reason
  }
  if (r2.status === 'rejected') {
    await postgres.value.stop()
    throw r2.reason
  }
  // Without the file the next run has other ports, and that is all.
  await rememberPorts(dir, {
    postgres: postgres.value.port,
    r2: Number(new URL(r2.value.endpoint).port),
  }).catch(() => undefined)
  return {
    postgres: postgres.value,
    r2: r2.value,
    async stop() {
      await Promise.all([postgres.value.stop(), r2.value.stop()])
    },
  }
}
