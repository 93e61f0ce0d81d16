// What a bench prints: tables for people, one object for scripts.
import os from 'node:os'
import { styleText } from 'node:util'
import { print, printJson, renderTable } from '../../src/cli/output.ts'

export interface Goal {
  name: string
  /** Such as `>= 30`. */
  goal: string
  value: number
  met: boolean
}

export interface BenchReport {
  bench: string
  machine: Record<string, string | number>
  settings: Record<string, unknown>
  figures: Record<string, number>
  goals: Goal[]
}

export function machine(): Record<string, string | number> {
  return {
    cpu: os.cpus()[0]?.model ?? 'unknown',
    cores: os.cpus().length,
    memory_gb: Math.round(os.totalmem() / 2 ** 30),
    os: `${os.type()} ${os.release()}`,
    node: process.version,
  }
}

export const atLeast = (name: string, value: number, limit: number): Goal => ({
  name,
  goal: `>= ${limit}`,
  value,
  met: value >= limit,
})

export const atMost = (name: string, value: number, limit: number): Goal => ({
  name,
  goal: `<= ${limit}`,
  value,
  met: value <= limit,
})

/** Short enough to read, long enough to compare. */
export function figure(value: number): string {
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString('en-US')
  return Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2)
}

export interface Table {
  title: string
  header: string[]
  rows: string[][]
}

export function printReport(report: BenchReport, tables: Table[], json: boolean): void {
  if (json) {
    printJson(report)
    return
  }
  const { cpu, cores, memory_gb, node } = report.machine
  print(`${report.bench}: ${cores} cores of ${cpu}, ${memory_gb} GB, Node ${node}`)
  for (const { title, header, rows } of tables) {
    print(`\n${styleText('bold', title)}`)
    print(renderTable(header, rows))
  }
  if (report.goals.length === 0) return
  print()
  print(
    renderTable(
      ['goal', 'asked', 'measured', ''],
      report.goals.map(g => [
        g.name,
        g.goal,
        figure(g.value),
        g.met ? styleText('green', 'met') : styleText('red', 'NOT met'),
      ]),
    ),
  )
}
