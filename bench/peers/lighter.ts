// pg-lighter itself: the daemon as `lighter start` runs it.
import pg from 'pg'
import { pino } from 'pino'
import { loadConfig } from '../../src/config.ts'
import { createDaemon } from '../../src/daemon.ts'
import { isClassA } from '../support/class-a.ts'
import { runContestant } from '../support/contestant.ts'

const rows = Number(process.env.BENCH_ROWS)
const admin = new pg.Pool({ connectionString: process.env.ADMIN_DATABASE_URL, max: 1 })
const finished = Promise.withResolvers<void>()
let offloaded = 0
let puts = 0
const daemon = createDaemon({
  config: loadConfig(process.env),
  // Formats its lines as in production; they go nowhere.
  log: pino({ level: 'info' }, { write: () => undefined }),
  onResult: result => {
    offloaded += result.offloadedRows
    if (offloaded >= rows) finished.resolve()
  },
  onStoreRequest: operation => {
    if (isClassA(operation)) puts++
  },
})

await runContestant({
  start: async () => {
    await daemon.start()
    puts = 0 // the owner object
  },
  enqueue: async () => {
    await admin.query(`
      insert into lighter.inbox (source_id, row_id)
        select (select id from lighter.sources), id::text from public.conversation_messages;
      select lighter.wake_daemon()`)
  },
  done: finished.promise,
  stop: async () => {
    await daemon.stop()
    await admin.end()
  },
  puts: () => puts,
})
