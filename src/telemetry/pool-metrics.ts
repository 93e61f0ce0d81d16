// Of the pools of database connections, read at each scrape.
import { Gauge, type Registry } from 'prom-client'

interface Pool {
  totalCount: number
  idleCount: number
  waitingCount: number
  options: { max: number }
}

export interface PoolMetrics {
  watch(name: string, pool: Pool): void
}

export function createPoolMetrics(registers: Registry[]): PoolMetrics {
  const pools = new Map<string, Pool>()
  const gauge = (name: string, help: string, numberOf: (pool: Pool) => number) =>
    new Gauge({
      name,
      help,
      labelNames: ['pool'],
      registers,
      collect() {
        for (const [pool, state] of pools) this.set({ pool }, numberOf(state))
      },
    })
  gauge(
    'lighter_pool_connections',
    'Open connections to Postgres by pool (worker, stream, sweeps, api, metrics).',
    pool => pool.totalCount,
  )
  gauge('lighter_pool_idle_connections', 'Those of them that nobody uses.', pool => pool.idleCount)
  gauge(
    'lighter_pool_waiting',
    'Callers that wait for a connection. More than none for long: the pool is too small, or the database is slow.',
    pool => pool.waitingCount,
  )
  gauge('lighter_pool_size', 'Connections that a pool may open at most.', pool => pool.options.max)
  return { watch: (name, pool) => void pools.set(name, pool) }
}
