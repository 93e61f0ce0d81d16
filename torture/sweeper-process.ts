// Sweeps without end, one after the other, in a process of its own that may die at any of them.
import { setTimeout as sleep } from 'node:timers/promises'
import { loadConfig } from '../src/config.ts'
import { createPool } from '../src/db/pool.ts'
import { pick, seededRandom } from '../src/demo/random.ts'
import { messageOf, OwnershipError } from '../src/errors.ts'
import { openStore } from '../src/store/object-store.ts'
import { type TortureSweep, tortureSweep } from './sweep.ts'

const often: TortureSweep[] = ['orphans', 'retention', 'release', 'compaction', 'compaction', 'compaction']
const names: TortureSweep[] = [...often, ...often, ...often, 'verify', 'rollup', 'vacuum', 'orphans-deep']

const config = loadConfig(process.env)
const random = seededRandom(process.env.SWEEPER_SEED ?? '')
const pool = createPool(config.databaseUrl, 4, () => undefined, { unlimited: true })
const store = openStore(config.store)
const stop = new AbortController()
process.on('SIGTERM', () => stop.abort())
process.on('disconnect', () => process.exit())

process.send?.('started')
while (!stop.signal.aborted) {
  const sweep = pick(random, names)
  try {
    process.send?.(await tortureSweep(sweep, { pool, store, config, signal: stop.signal }))
  } catch (error) {
    const displaced = error instanceof OwnershipError && error.code !== 'epoch_taken'
    process.send?.({ sweep, error: messageOf(error), displaced })
    await sleep(300)
  }
  await sleep(random() * 400)
}
process.exit()
