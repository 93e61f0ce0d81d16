// A daemon in a process of its own, configured by the environment. With KILL_AT it kills itself with SIGKILL
// the first time the pipeline comes to that point, or the KILL_AT_NTH: nothing is flushed, released or caught.
import { pino } from 'pino'
import { loadConfig } from '../../src/config.ts'
import { createDaemon } from '../../src/daemon.ts'

const config = loadConfig(process.env)
let times = 0
const daemon = createDaemon({
  config,
  log: pino({ level: config.logLevel }),
  signal: async point => {
    if (point !== process.env.KILL_AT) return
    times++
    if (times < Number(process.env.KILL_AT_NTH ?? 1)) return
    process.kill(process.pid, 'SIGKILL')
    await new Promise(() => undefined)
  },
})
await daemon.start()
process.send?.('started')
process.on('SIGTERM', () => void daemon.stop().then(() => process.disconnect?.()))
