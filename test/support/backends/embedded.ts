import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { startEmbedded } from '../../../src/embedded/index.ts'
import { startPostgres } from '../../../src/embedded/postgres.ts'
import type { BackendServers, TestPostgres } from './backend.ts'

export async function startEmbeddedBackend(): Promise<BackendServers> {
  const dir = await mkdtemp(path.join(tmpdir(), 'pg-lighter-test-'))
  const embedded = await startEmbedded({ dir })
  return {
    postgres: embedded.postgres,
    store: embedded.r2,
    stop: async () => {
      await embedded.stop()
      await rm(dir, { recursive: true, force: true })
    },
  }
}

export async function startEmbeddedPostgres(settings: Record<string, string>): Promise<TestPostgres> {
  const dir = await mkdtemp(path.join(tmpdir(), 'pg-lighter-test-postgres-'))
  const server = await startPostgres({ dataDir: path.join(dir, 'postgres'), settings })
  return {
    url: server.url,
    stop: async () => {
      await server.stop('immediate')
      await rm(dir, { recursive: true, force: true })
    },
  }
}
