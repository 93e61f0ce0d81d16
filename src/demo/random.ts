// Random numbers that are the same on every machine and in every version of Node: sfc32 (public domain,
// period about 2^128), seeded by a hash of whatever names the stream.

/** The next number of a stream, uniform in [0, 1). */
export type Random = () => number

/** A stream of its own for each list of names: the same names, the same numbers. */
export function seededRandom(...names: (string | number)[]): Random {
  let [a, b, c, counter] = [hash(names, 1), hash(names, 2), hash(names, 3), 1]
  const next = () => {
    const sum = (a + b + counter) | 0
    counter = (counter + 1) | 0
    a = b ^ (b >>> 9)
    b = (c + (c << 3)) | 0
    c = ((c << 21) | (c >>> 11)) + sum
    return (sum >>> 0) / 2 ** 32
  }
  // The first numbers of close seeds resemble each other.
  for (let i = 0; i < 12; i++) next()
  return next
}

/** A whole number from `low` to `high`, both included. */
export function between(random: Random, low: number, high: number): number {
  return low + Math.floor(random() * (high - low + 1))
}

export function chance(random: Random, probability: number): boolean {
  return random() < probability
}

export function pick<T>(random: Random, list: readonly T[]): T {
  const index = Math.floor(random() * list.length)
  if (index >= list.length) throw new RangeError('pick: the list is empty')
  return list[index] as T
}

/** The index of the first running total above a random part of the last one. */
export function pickIndex(random: Random, runningTotals: readonly number[]): number {
  const target = random() * (runningTotals.at(-1) ?? 0)
  let [low, high] = [0, runningTotals.length - 1]
  while (low < high) {
    const middle = (low + high) >> 1
    if ((runningTotals[middle] ?? 0) > target) high = middle
    else low = middle + 1
  }
  return low
}

export function runningTotals(weights: readonly number[]): number[] {
  let total = 0
  return weights.map(weight => {
    total += weight
    return total
  })
}

/** `length` characters of `alphabet`. */
export function code(random: Random, length: number, alphabet: string): string {
  let text = ''
  for (let i = 0; i < length; i++) text += alphabet[Math.floor(random() * alphabet.length)]
  return text
}

/** Looks like a version 4 UUID of RFC 4122. */
export function uuid(random: Random): string {
  const hex = code(random, 32, '0123456789abcdef')
  const variant = pick(random, ['8', '9', 'a', 'b'])
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20)}`
}

/** FNV-1a of the names, then mixed so that each bit depends on all of them. */
function hash(names: (string | number)[], salt: number): number {
  let value = 0x811c9dc5 ^ salt
  for (const character of names.join('\u0000')) {
    value = Math.imul(value ^ (character.codePointAt(0) ?? 0), 0x01000193)
  }
  value = Math.imul(value ^ (value >>> 16), 0x7feb352d)
  value = Math.imul(value ^ (value >>> 15), 0x846ca68b)
  return value ^ (value >>> 16)
}
