// What a daemon's /metrics says, as numbers.
export type Samples = Map<string, number>

export const serviceKey = 'scrape-'.padEnd(32, 'k')

/** Asked with the service key, as Prometheus does. Keys are as in the text: name{label="value"}, in its order. */
export async function scrape(address: string | null): Promise<Samples> {
  const answer = await fetch(`${address}/metrics`, { headers: { authorization: `Bearer ${serviceKey}` } })
  const text = await answer.text()
  if (answer.status !== 200) throw new Error(`/metrics answered ${answer.status}: ${text}`)
  return samplesOf(text)
}

export function samplesOf(text: string): Samples {
  return new Map(
    text.split('\n').flatMap(line => {
      const [, series, value] = /^([a-z_]+(?:\{.*\})?) (\S+)$/.exec(line) ?? []
      return series === undefined ? [] : [[series, Number(value)] as const]
    }),
  )
}

/** By one label, of the series of that name. */
export function byLabel(samples: Samples, name: string, label: string): Record<string, number> {
  const found: Record<string, number> = {}
  for (const [series, value] of samples) {
    if (!series.startsWith(`${name}{`)) continue
    const of = new RegExp(`[{,]${label}="([^"]*)"`).exec(series)?.[1]
    if (of !== undefined) found[of] = (found[of] ?? 0) + value
  }
  return found
}
