// What a run says at its end.
import { styleText } from 'node:util'
import { formatCount, print, renderTable } from '../src/cli/output.ts'
import { type Finding, type FindingKind, findingKinds } from './findings.ts'

export type Counts = Record<string, number>

export interface TortureReport extends Record<FindingKind, number> {
  seed: number
  minutes: number
  daemons: number
  duration_ms: number
  /** Writes of the application. */
  operations: number
  /** Rows read back while all of it went on. */
  reads: number
  /** Artifacts of programs, read over HTTP while all of it went on. */
  artifact_reads: number
  /** Processes that got SIGKILL, or were stopped past their lease. */
  kills: number
  postgres_restarts: number
  /** Requests to the store that went wrong. */
  faults: number
  store_requests: number
  /** Rows read back at the end: all there are. */
  rows_checked: number
  /** Artifacts that programs have put: all there ever were. */
  artifacts_checked: number
  artifacts: number
  objects: number
  by: {
    operations: Counts
    kills: Counts
    faults: Counts
    partitions: Counts
    database: Counts
    commands: Counts
    sweeps: Counts
  }
  findings: (Finding & { history: string[] })[]
}

export const hasFailed = (report: TortureReport) => findingKinds.some(kind => report[kind] > 0)

export const sum = (counts: Counts) => Object.values(counts).reduce((all, n) => all + n, 0)

export function printReport(report: TortureReport): void {
  const parts: [string, Counts][] = [
    ['writes', report.by.operations],
    ['kills', report.by.kills],
    ['faults of the store', report.by.faults],
    ['partitions', report.by.partitions],
    ['database', report.by.database],
    ['commands', report.by.commands],
    ['sweeps', report.by.sweeps],
  ]
  for (const [what, counts] of parts) {
    const rows = Object.entries(counts).sort(([, a], [, b]) => b - a)
    if (rows.length === 0) continue
    print(
      renderTable(
        [what, formatCount(sum(counts))],
        rows.map(([name, n]) => [`  ${name}`, formatCount(n)]),
      ),
    )
    print()
  }
  print(
    renderTable(
      [`seed ${report.seed}, ${(report.duration_ms / 60_000).toFixed(1)} min`, ''],
      [
        ['writes', formatCount(report.operations)],
        ['rows read meanwhile', formatCount(report.reads)],
        ['artifacts read meanwhile', formatCount(report.artifact_reads)],
        ['kills', formatCount(report.kills)],
        ['restarts of Postgres', formatCount(report.postgres_restarts)],
        ['faults of the store', formatCount(report.faults)],
        ['rows checked at the end', formatCount(report.rows_checked)],
        ['artifacts checked at the end', formatCount(report.artifacts_checked)],
        ...findingKinds.map(kind => [kind.replaceAll('_', ' '), formatCount(report[kind])]),
      ],
    ),
  )
  print()
  if (hasFailed(report)) print(styleText('red', `failed; again with: --seed ${report.seed}`))
  else print(styleText('green', 'every row is what was last written, and nothing was left behind'))
}

/** To standard error, whatever is printed. */
export function explainFindings(report: TortureReport): void {
  for (const { kind, subject, detail, atMs, history } of report.findings) {
    process.stderr.write(`${kind} ${subject} after ${(atMs / 1000).toFixed(1)} s: ${detail}\n`)
    for (const line of history) process.stderr.write(`    ${line}\n`)
  }
}
