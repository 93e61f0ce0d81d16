// Starts what TEST_BACKEND says. Only that is loaded: each brings packages that the other does without.
import { type BackendServers, backend, type TestPostgres } from './backend.ts'

export async function startBackend(): Promise<BackendServers> {
  if (backend === 'containers') return (await import('./containers.ts')).startContainers()
  return (await import('./embedded.ts')).startEmbeddedBackend()
}

/** Beside the one that all tests share: for what would disturb the others, or is the whole server's. */
export async function startPostgresBeside(settings: Record<string, string> = {}): Promise<TestPostgres> {
  const all = { fsync: 'off', ...settings }
  if (backend === 'containers') return (await import('./containers.ts')).startPostgresContainer(all)
  return (await import('./embedded.ts')).startEmbeddedPostgres(all)
}
