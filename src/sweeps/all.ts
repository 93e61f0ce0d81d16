// The sweeps by name: what each does. src/sweeps/names.ts says what for, and when.
import { sweepCompaction } from './compaction.ts'
import type { Sweep } from './context.ts'
import type { SweepName } from './names.ts'
import { sweepOrphans } from './orphans.ts'
import { sweepRelease } from './release.ts'
import { sweepRetention } from './retention.ts'
import { sweepRollup } from './rollup.ts'
import { sweepScan } from './scan.ts'
import { sweepVacuum } from './vacuum.ts'
import { sweepVerify } from './verify.ts'

export const sweeps: Record<SweepName, Sweep> = {
  orphans: sweepOrphans,
  retention: context => sweepRetention(context),
  release: sweepRelease,
  compaction: sweepCompaction,
  verify: context => sweepVerify(context),
  scan: sweepScan,
  rollup: context => sweepRollup(context),
  vacuum: context => sweepVacuum(context, false),
}
