/**
 * The values that a label may take: the first `limit` that come get series of their own, all later ones are "other".
 * A label whose values others choose would else grow without end.
 */
export function boundedLabels(limit: number): (value: string) => string {
  const known = new Set<string>()
  return value => {
    if (known.has(value)) return value
    if (known.size >= limit) return 'other'
    known.add(value)
    return value
  }
}
