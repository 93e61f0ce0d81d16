// Which sweep the options ask for, and what it found beside its counts.

import { LighterError } from '../errors.ts'
import { asTenantId } from '../ids.ts'
import { sweeps } from '../sweeps/all.ts'
import type { Sweep } from '../sweeps/context.ts'
import type { SweepName } from '../sweeps/names.ts'
import { type MissingObject, sweepOrphansDeep, type UnknownObject } from '../sweeps/orphans-deep.ts'
import { type Expiring, sweepRetention } from '../sweeps/retention.ts'
import { sweepRollup } from '../sweeps/rollup.ts'
import { sweepVacuum } from '../sweeps/vacuum.ts'
import { type DamagedArtifact, sweepVerify } from '../sweeps/verify.ts'
import { formatBytes, formatCount, renderTable } from './output.ts'

export interface SweepOptions {
  all?: boolean
  tenant?: string
  restart?: boolean
  full?: boolean
  deep?: boolean
  deleteUnknown?: boolean
  maxDeletions?: number
}

interface Choice {
  /** Of its lock and its history. */
  name: string
  sweep: Sweep
  /** For --json. */
  found: () => Record<string, unknown>
  /** For people. */
  lines: () => string[]
}

const maxShown = 20
const maxInJson = 1000

/** @throws {LighterError} there is no such sweep, or an option is not its */
export function chooseSweep(name: string, options: SweepOptions): Choice {
  const sweep = sweeps[name as SweepName]
  if (sweep === undefined || !Object.hasOwn(sweeps, name)) {
    throw new LighterError('unknown_sweep', `there is no sweep "${name}"`, {
      hint: `One of ${Object.keys(sweeps).join(', ')}`,
    })
  }
  const require = (given: unknown, option: string, needed: boolean, context: string) => {
    if (given !== undefined && !needed) {
      throw new LighterError('option_misplaced', `${option} goes with: lighter sweep ${context}`)
    }
  }
  const all = name === 'verify' && options.all === true
  const deep = name === 'orphans' && options.deep === true
  require(options.all, '--all', name === 'verify', 'verify')
  require(options.tenant, '--tenant', all, 'verify --all')
  require(options.restart, '--restart', all, 'verify --all')
  require(options.full, '--full', name === 'rollup', 'rollup')
  require(options.deep, '--deep', name === 'orphans', 'orphans')
  require(options.deleteUnknown, '--delete-unknown', deep, 'orphans --deep')
  require(options.maxDeletions, '--max-deletions', deep &&
    options.deleteUnknown === true, 'orphans --deep --delete-unknown')
  if (name === 'verify') return verify(options)
  if (deep) return orphansDeep(options)
  if (name === 'retention') return retention()
  // Whoever asks for it knows what the hour is.
  if (name === 'vacuum') {
    return { name, sweep: context => sweepVacuum(context, true), found: () => ({}), lines: () => [] }
  }
  if (name === 'rollup' && options.full) {
    return {
      name,
      sweep: context => sweepRollup(context, { full: true }),
      found: () => ({}),
      lines: () => [],
    }
  }
  return { name, sweep, found: () => ({}), lines: () => [] }
}

function retention(): Choice {
  const expiring: Expiring[] = []
  return {
    name: 'retention',
    sweep: context => sweepRetention(context, found => expiring.push(found)),
    found: () => (expiring.length > 0 ? { expiring } : {}),
    lines: () =>
      table(
        ['tenant', 'kind', 'policy', 'artifacts', 'bytes'],
        expiring.map(e => [e.tenant_id, e.kind, e.policy, formatCount(e.artifacts), formatBytes(e.bytes)]),
      ),
  }
}

function verify(options: SweepOptions): Choice {
  const damaged = createList<DamagedArtifact>()
  return {
    name: 'verify',
    sweep: context =>
      sweepVerify(context, {
        all: options.all === true,
        tenantId: options.tenant === undefined ? null : asTenantId(options.tenant),
        restart: options.restart === true,
        onDamaged: damaged.add,
      }),
    found: () => ({ damaged: damaged.items }),
    lines: () => [
      ...table(
        ['tenant', 'artifact', 'kind', 'what'],
        damaged.items.slice(0, maxShown).map(d => [d.tenant_id, d.id, d.kind, d.damage]),
      ),
      ...damaged.more('damaged artifacts: select * from lighter.damaged_artifacts'),
    ],
  }
}

function orphansDeep(options: SweepOptions): Choice {
  const unknown = createList<UnknownObject>()
  const missing = createList<MissingObject>()
  return {
    name: 'orphans-deep',
    sweep: context =>
      sweepOrphansDeep(context, {
        deleteUnknown: options.deleteUnknown === true,
        maxDeletions: options.maxDeletions ?? 1000,
        onUnknown: unknown.add,
        onMissing: missing.add,
      }),
    found: () => ({ unknown: unknown.items, missing: missing.items }),
    lines: () => [
      ...table(
        ['unknown object', 'bytes', 'last modified', 'stays, since it is'],
        unknown.items
          .slice(0, maxShown)
          .map(u => [u.key, formatBytes(u.size), u.last_modified ?? '', u.kept ?? '']),
      ),
      ...unknown.more('unknown objects'),
      ...table(
        ['missing object', 'artifacts', 'such as'],
        missing.items.slice(0, maxShown).map(m => [m.key, formatCount(m.artifacts), m.artifact_ids[0] ?? '']),
      ),
      ...missing.more('missing objects'),
    ],
  }
}

const table = (header: string[], rows: string[][]): string[] =>
  rows.length === 0 ? [] : [renderTable(header, rows)]

/** The first of what is found, and how many there were. */
function createList<T>() {
  const items: T[] = []
  let all = 0
  return {
    items,
    add: (item: T) => {
      if (++all <= maxInJson) items.push(item)
    },
    more: (what: string) => (all > maxShown ? [`and ${formatCount(all - maxShown)} more ${what}`] : []),
  }
}
