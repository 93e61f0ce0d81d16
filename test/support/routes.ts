// Which routes the API has, asked of the server itself.
import { pino } from 'pino'
import { createApi } from '../../src/api/server.ts'
import { createMetrics } from '../../src/telemetry/metrics.ts'
import type { TestEnvironment } from './environment.ts'

/** As `GET /api/storage/artifacts/:id`, sorted. */
export async function listRoutes(
  environment: TestEnvironment,
  env: Record<string, string>,
): Promise<string[]> {
  const api = await createApi({
    config: environment.config(env),
    pool: environment.worker,
    store: environment.store,
    log: pino({ level: 'silent' }),
    metrics: createMetrics(),
  })
  await api.server.ready()
  try {
    return routesOf(api.server.printRoutes({ commonPrefix: false }))
  } finally {
    await api.close()
  }
}

/** A tree of which each line has a part of the path and, where a route ends there, its methods. */
function routesOf(tree: string): string[] {
  const routes: string[] = []
  const parents: string[] = []
  for (const line of tree.split('\n')) {
    const [, indent = '', part, methods] = /^([│ ]*)[├└]── (.*?)(?: \(([A-Z, ]+)\))?$/.exec(line) ?? []
    if (part === undefined) continue
    const depth = indent.length / 4
    const path = (depth === 0 ? '' : (parents[depth - 1] ?? '')) + part
    parents[depth] = path
    for (const method of methods?.split(', ') ?? []) routes.push(`${method} ${path}`)
  }
  return routes.sort()
}
