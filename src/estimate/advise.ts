// Which settings would cost least for this table: each is tried on the sample, the others as they are.
import type { DescribedSource } from './describe.ts'
import { type Circumstances, type Weight, weigh } from './weigh.ts'

export interface Advice {
  setting: '--min-bytes' | '--threshold' | '--settle-for' | '--max-wait'
  /** What attach would take. */
  value: string
  isDefault: boolean
  why: string
}

const minBytes = [0, 100, 200, 300, 500, 1000, 2000, 4000]
const thresholds = [2000, 4000, 8000, 16_000, 32_000]
const waits: [ms: number, text: string][] = [
  [3_600_000, '1h'],
  [6 * 3_600_000, '6h'],
  [86_400_000, '24h'],
  [7 * 86_400_000, '7d'],
]
/** A change that saves less than this part of the bill is not worth a setting. */
const worthwhile = 0.03
const leastEnvelopeValue = 40

export function advise(
  of: Circumstances,
  source: DescribedSource,
  settleSeconds: number | null,
): { advice: Advice[]; best: Weight } {
  const chosen = { ...source }
  const bill = (settings: DescribedSource) => weigh(of, settings).bill.offloaded
  const cheapest = <T>(current: T, candidates: T[], change: (value: T) => void): T => {
    change(current)
    let best = current
    let least = bill(chosen)
    for (const value of candidates) {
      change(value)
      const cost = bill(chosen)
      if (cost < least * (1 - worthwhile)) {
        best = value
        least = cost
      }
    }
    change(best)
    return best
  }
  const min = cheapest(source.minBytes, minBytes, value => {
    chosen.minBytes = value
  })
  // Attach refuses a threshold that leaves less room for each key of the envelope: lighter.envelope_value_limit.
  const shares = source.envelopeKeys.length + 1
  const threshold = cheapest(
    source.thresholdBytes,
    thresholds.filter(
      threshold =>
        source.envelopeValueLimit + (threshold - source.thresholdBytes) / shares >= leastEnvelopeValue,
    ),
    value => {
      chosen.thresholdBytes = value
    },
  )
  const wait =
    of.rowsPerSecond === null
      ? source.maxWaitMs
      : cheapest(
          source.maxWaitMs,
          waits.map(([ms]) => ms),
          value => {
            chosen.maxWaitMs = value
          },
        )
  const changed = (is: boolean, basis: string) => (is ? basis : 'no other one tried saves 3 % of the bill')
  const advice: Advice[] = [
    {
      setting: '--min-bytes',
      value: String(min),
      isDefault: min === source.minBytes,
      why: changed(
        min !== source.minBytes,
        'the bill of the sample is least with it, of eight tried: a smaller field costs more than it frees',
      ),
    },
    {
      setting: '--threshold',
      value: String(threshold),
      isDefault: threshold === source.thresholdBytes,
      why: changed(
        threshold !== source.thresholdBytes,
        'the bill of the sample is least with it, of five tried',
      ),
    },
    settleAdvice(source, settleSeconds),
    {
      setting: '--max-wait',
      value: waits.find(([ms]) => ms === wait)?.[1] ?? `${Math.round(wait / 1000)}s`,
      isDefault: wait === source.maxWaitMs,
      why:
        of.rowsPerSecond === null
          ? 'the rate of writes is not known'
          : changed(wait !== source.maxWaitMs, 'the bill is least with it, of four tried at this rate'),
    },
  ]
  return { advice, best: weigh(of, chosen) }
}

/** @param settleSeconds 95 of 100 rows were written last within so long of their first write; null: no column tells */
function settleAdvice(source: DescribedSource, settleSeconds: number | null): Advice {
  const current = source.settleMs / 1000
  if (settleSeconds === null)
    return {
      setting: '--settle-for',
      value: `${current}s`,
      isDefault: true,
      why: 'no pair of columns tells when rows are written again',
    }
  const candidates: [number, string][] = [
    [60, '1m'],
    [300, '5m'],
    [900, '15m'],
    [3600, '1h'],
    [21_600, '6h'],
    [86_400, '24h'],
  ]
  const [seconds, value] = candidates.find(([each]) => each >= settleSeconds) ?? [86_400, '24h']
  const isDefault = seconds <= current
  return {
    setting: '--settle-for',
    value: isDefault ? `${current}s` : value,
    isDefault,
    why: `95 of 100 rows of the sample were written last within ${Math.round(settleSeconds)} s of their first write`,
  }
}
