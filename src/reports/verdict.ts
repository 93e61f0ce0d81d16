// Whether offloading pays, in one sentence: the demo, `lighter stats` and the dashboard all begin with it.
import { formatBytes } from '../cli/output.ts'

export interface Balance {
  artifacts: number
  /** Of the bill of `period`; below 0: it costs more than the payloads would in their rows. */
  savedUsd: number
  /** Of the database after a rewrite; below 0: it is larger than it would be with the payloads in their rows. */
  savedBytes: number
  /** By what both were compared before they were rounded; null: nothing is offloaded. */
  paysUsd: boolean | null
  paysBytes: boolean | null
  period: 'a month' | 'in 90 days'
  /** Both sides were measured. */
  measured: boolean
}

export interface Verdict {
  /** Null: nothing is offloaded. */
  pays: boolean | null
  text: string
}

export function verdictOf(balance: Balance): Verdict {
  const { paysUsd, paysBytes, period } = balance
  if (balance.artifacts === 0 || paysUsd === null || paysBytes === null)
    return { pays: null, text: 'Nothing is offloaded yet, so nothing is saved.' }
  const about = balance.measured ? '' : 'about '
  const usd = formatUsd(Math.abs(balance.savedUsd))
  const bytes = formatBytes(Math.abs(balance.savedBytes))
  const money = paysUsd ? `saves ${about}${usd} ${period}` : `costs ${about}${usd} more ${period}`
  const space = `after a rewrite the database is ${about}${bytes} ${paysBytes ? 'smaller' : 'larger'} than with all payloads inline`
  return paysUsd && paysBytes
    ? { pays: true, text: `Offloading pays: it ${money}; ${space}.` }
    : { pays: false, text: `Offloading does not pay here: it ${money}; ${space}.` }
}

/** Two digits of what is less than a cent, so that a small demo shows a sign at all. */
export function formatUsd(amount: number): string {
  const size = Math.abs(amount)
  const digits = size === 0 || size >= 0.01 ? 2 : Math.min(6, 1 - Math.floor(Math.log10(size)))
  const rounded = size.toFixed(digits)
  return `${amount < 0 && Number(rounded) > 0 ? '-' : ''}$${rounded}`
}
