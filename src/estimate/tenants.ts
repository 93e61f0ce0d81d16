// How many tenants there are and how the rows are shared out among them, from those that a sample met.

export interface Tenants {
  total: number
  /** Whether all are known, were given, or are estimated. */
  basis: 'counted' | 'given' | 'estimated'
  /** `count` tenants have `share` of the rows each. */
  shares: { share: number; count: number }[]
}

/**
 * Of a part of the table, those that were met once tell how many were not met (Good and Turing): they have as much of all rows
 * as the former have of the sample. Their number is estimated as Haas and Stokes do (sqrt(N / n) for each that was met once).
 * @param tenants of each row that leaves
 * @param expansion rows of the table for one of the sample
 */
export function tenantsOf(tenants: (string | null)[], expansion: number, given: number | null): Tenants {
  const counts = new Map<string, number>()
  for (const tenant of tenants) counts.set(tenant ?? '', (counts.get(tenant ?? '') ?? 0) + 1)
  const rows = tenants.length
  if (rows === 0) return { total: given ?? 0, basis: given === null ? 'counted' : 'given', shares: [] }
  const once = [...counts.values()].filter(count => count === 1).length
  const more = counts.size - once
  const isWhole = expansion <= 1
  const estimated = isWhole ? counts.size : Math.round(Math.sqrt(expansion) * once + more)
  const total = given ?? estimated
  if (total === counts.size)
    return {
      total,
      basis: given === null ? (isWhole ? 'counted' : 'estimated') : 'given',
      shares: group([...counts.values()].map(c => c / rows)),
    }
  if (total < counts.size || more === 0)
    return {
      total,
      basis: given === null ? 'estimated' : 'given',
      shares: [{ share: 1 / total, count: total }],
    }
  const rest = Math.max(once / rows, 1e-9)
  const known = [...counts.values()]
    .filter(count => count > 1)
    .map(count => (count / (rows - once)) * (1 - rest))
  return {
    total,
    basis: given === null ? 'estimated' : 'given',
    shares: [...group(known), { share: rest / (total - more), count: total - more }],
  }
}

function group(shares: number[]): Tenants['shares'] {
  return [...Map.groupBy(shares, share => share)].map(([share, of]) => ({ share, count: of.length }))
}
