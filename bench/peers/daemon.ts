// A daemon that simply runs, for benches where the work comes from elsewhere.
import { pino } from 'pino'
import { loadConfig } from '../../src/config.ts'
import { createDaemon } from '../../src/daemon.ts'
import { runContestant } from '../support/contestant.ts'

const rows = Number(process.env.BENCH_ROWS ?? '0')
const finished = Promise.withResolvers<void>()
let offloaded = 0
const daemon = createDaemon({
  config: loadConfig(process.env),
  log: pino({ level: 'info' }, { write: () => undefined }),
  onResult: result => {
    offloaded += result.offloadedRows
    if (offloaded >= rows) finished.resolve()
  },
})
let started: Promise<void> | undefined
await runContestant({
  // Against a backlog that is there already: starts when told to.
  start: async () => {
    if (rows === 0) await daemon.start()
  },
  enqueue: async () => {
    started ??= daemon.start()
    await started
  },
  done: finished.promise,
  stop: async () => {
    await daemon.stop()
  },
  puts: () => 0,
})
