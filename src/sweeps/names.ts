// The sweeps: what each is for, and when it runs if nothing else is said. src/sweeps/all.ts has what each does.

const sweepDefaults = {
  orphans: { cron: '*/10 * * * *', purpose: 'When orphans are deleted, in UTC; off: never' },
  retention: {
    cron: '17 3 * * *',
    purpose: 'When artifacts past their retention policy expire, and deleted ones leave the bucket',
  },
  release: {
    cron: '37 4 * * 6',
    purpose: 'When artifacts that no row points to any more are looked for',
  },
  compaction: { cron: '47 * * * *', purpose: 'When small and half-dead packs are rewritten' },
  verify: { cron: '7 5 * * *', purpose: 'When a sample of payloads is read back and checked' },
  vacuum: {
    cron: '27 2 * * *',
    purpose: 'When attached tables with many dead rows are vacuumed, unless they are busy',
  },
  scan: {
    cron: '*/5 * * * *',
    purpose:
      'Schedule of the scan for rows to offload, in tables without a trigger and in those with a when_sql that depends on time',
  },
  rollup: {
    cron: '*/15 * * * *',
    purpose: 'When what the reports are read from is added up; late or never, they are as exact and slower',
  },
} as const

export type SweepName = keyof typeof sweepDefaults

export const sweepNames = Object.keys(sweepDefaults) as SweepName[]

type SweepVariable = `SWEEP_${Uppercase<SweepName>}_CRON`

/** The environment variable that says when it runs. */
export const sweepVariable = (name: SweepName) => `SWEEP_${name.toUpperCase()}_CRON` as SweepVariable

/** Something for each sweep, by its variable. */
export function bySweepVariable<T>(
  of: (sweep: { cron: string; purpose: string }) => T,
): Record<SweepVariable, T> {
  return Object.fromEntries(sweepNames.map(name => [sweepVariable(name), of(sweepDefaults[name])])) as Record<
    SweepVariable,
    T
  >
}
