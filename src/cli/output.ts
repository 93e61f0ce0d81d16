// What all commands share in speaking to people and scripts.
import { styleText } from 'node:util'
import { explainError } from '../explain-error.ts'
import { fitTable } from '../reports/table.ts'

/** One line for what went wrong and one for what to do next; no stack. */
export function renderError(error: unknown): string {
  const { message, hint } = explainError(error)
  const paint = (colour: 'red' | 'yellow', text: string) =>
    styleText(colour, text, { stream: process.stderr })
  const lines = [`${paint('red', 'error')}: ${message}`]
  if (hint) lines.push(`${paint('yellow', 'hint')}: ${hint}`)
  return lines.join('\n')
}

/** For `--json`: exactly one object on standard output. */
export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`)
}

export function print(line = ''): void {
  process.stdout.write(`${line}\n`)
}

/** Of what is no terminal: nothing is cut. */
const unlimited = 10_000

export function outputWidth(): number {
  return process.stdout.isTTY ? (process.stdout.columns ?? 80) : unlimited
}

/** Columns padded to their widest cell; numbers to the right, text cut where the terminal is too narrow. */
export function renderTable(header: string[], rows: string[][]): string {
  const columns = header.map((title, i) => {
    const right = rows.every(row => /^[-\d.,]*( ?[A-Za-z%×]+)?$/.test(row[i] ?? ''))
    return { title, right, flexible: !right }
  })
  return fitTable(columns, rows, outputWidth()).join('\n')
}

const units = ['B', 'KB', 'MB', 'GB', 'TB']

/** Decimal units, as the bill has them. */
export function formatBytes(bytes: number): string {
  const power = Math.min(bytes < 1000 ? 0 : Math.floor(Math.log10(bytes) / 3), units.length - 1)
  return `${(bytes / 1000 ** power).toFixed(power === 0 ? 0 : 1)} ${units[power]}`
}

export function formatCount(count: number): string {
  return count.toLocaleString('en-US')
}
