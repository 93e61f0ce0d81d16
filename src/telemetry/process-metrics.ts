// Of the process. Not prom-client's own set: its observer of garbage collections and its monitor of the event loop
// cost CPU all the time, the rest is read by nobody. Here all but one timer is done at the scrape.
import { readdir } from 'node:fs/promises'
import { performance } from 'node:perf_hooks'
import { Counter, Gauge, Histogram, type Registry } from 'prom-client'

/** How often the event loop is asked how late it is. */
const lookMs = 100

/** @returns ends the timer */
export function createProcessMetrics(registers: Registry[]): () => void {
  new Gauge({
    name: 'lighter_process_start_time_seconds',
    help: 'When the process was started, in seconds since 1970.',
    registers,
  }).set(Date.now() / 1000 - process.uptime())

  let told = { user: 0, system: 0 }
  new Counter({
    name: 'lighter_process_cpu_seconds_total',
    help: 'CPU of the process by mode (user, system).',
    labelNames: ['mode'],
    registers,
    collect() {
      const used = process.cpuUsage()
      this.inc({ mode: 'user' }, (used.user - told.user) / 1e6)
      this.inc({ mode: 'system' }, (used.system - told.system) / 1e6)
      told = used
    },
  })
  new Gauge({
    name: 'lighter_process_resident_memory_bytes',
    help: 'Memory of the process that is in RAM.',
    registers,
    collect() {
      this.set(process.memoryUsage.rss())
    },
  })
  new Gauge({
    name: 'lighter_nodejs_memory_bytes',
    help: 'Memory as Node tells it, by use: heap_used, heap_total, external (array_buffers included), array_buffers.',
    labelNames: ['use'],
    registers,
    collect() {
      const { heapUsed, heapTotal, external, arrayBuffers } = process.memoryUsage()
      this.set({ use: 'heap_used' }, heapUsed)
      this.set({ use: 'heap_total' }, heapTotal)
      this.set({ use: 'external' }, external)
      this.set({ use: 'array_buffers' }, arrayBuffers)
    },
  })
  new Gauge({
    name: 'lighter_process_open_fds',
    help: 'Open files and sockets of the process, where /proc tells.',
    registers,
    async collect() {
      const open = await readdir('/proc/self/fd').catch(() => null)
      if (open !== null) this.set(open.length)
    },
  })
  let loop = { active: 0, idle: 0 }
  new Counter({
    name: 'lighter_event_loop_seconds_total',
    help: 'Time that the event loop was active, and idle (by state).',
    labelNames: ['state'],
    registers,
    collect() {
      const now = performance.eventLoopUtilization()
      this.inc({ state: 'active' }, Math.max(0, now.active - loop.active) / 1000)
      this.inc({ state: 'idle' }, Math.max(0, now.idle - loop.idle) / 1000)
      loop = now
    },
  })
  const delay = new Histogram({
    name: 'lighter_event_loop_delay_seconds',
    help: `How late the event loop was, asked every ${lookMs} ms.`,
    buckets: [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5],
    registers,
  })
  let due = performance.now() + lookMs
  const timer = setInterval(() => {
    const now = performance.now()
    delay.observe(Math.max(0, now - due) / 1000)
    due = now + lookMs
  }, lookMs)
  timer.unref()
  return () => clearInterval(timer)
}
