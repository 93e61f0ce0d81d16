// A daemon in a process of its own, configured by the environment. With KILL_AT it kills itself with SIGKILL the
// first time (or the KILL_AFTERth) that the pipeline comes to that point: nothing is flushed, released or caught.
// With STOP_AT it likewise stops itself with SIGSTOP, after it has told so; whoever started it lets it go on.
// With WITH_API=on it serves the API, too.
import { pino } from 'pino'
import { loadConfig } from '../../src/config.ts'
import { createDaemon } from '../../src/daemon.ts'

const config = loadConfig(process.env)
const { KILL_AT, KILL_AFTER = '1', STOP_AT, WITH_API } = process.env
let arrivals = 0
let stopped = false
const daemon = createDaemon({
  config,
  log: pino({ level: config.logLevel }),
  api: WITH_API === 'on',
  signal: async point => {
    if (point === STOP_AT && !stopped) {
      stopped = true
      await new Promise(resolve => process.send?.('stopping', resolve))
      process.kill(process.pid, 'SIGSTOP')
    }
    if (point !== KILL_AT || ++arrivals < Number(KILL_AFTER)) return
    process.kill(process.pid, 'SIGKILL')
    await new Promise(() => undefined)
  },
})
process.on('disconnect', () => process.exit())
await daemon.start()
process.send?.('started')
process.on('SIGTERM', () => void daemon.stop().then(() => process.disconnect?.()))
