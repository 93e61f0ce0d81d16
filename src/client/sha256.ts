// SHA-256 in pieces. Web Crypto hashes only what is in memory as a whole.

export interface Sha256 {
  update(bytes: Uint8Array): void
  hex(): string
}

/** Node's own where there is one (Node, Bun, Deno, Workers with Node's compatibility), else ours. */
export function createSha256(): Sha256 {
  const crypto = globalThis.process?.getBuiltinModule?.('node:crypto')
  if (crypto === undefined) return createPortableSha256()
  const hash = crypto.createHash('sha256')
  return { update: bytes => hash.update(bytes), hex: () => hash.digest('hex') }
}

/** FIPS 180-4, 6.2. About 90 MB a second on one core, against Node's gigabyte and more. */
export function createPortableSha256(): Sha256 {
  const state = Uint32Array.from(primes(8), prime => fraction(Math.sqrt(prime)))
  const block = new Uint8Array(64)
  let filled = 0
  let length = 0
  return {
    update: bytes => {
      length += bytes.length
      for (let at = 0; at < bytes.length; ) {
        if (filled === 0 && bytes.length - at >= 64) {
          compress(state, bytes, at)
          at += 64
          continue
        }
        const piece = bytes.subarray(at, at + 64 - filled)
        block.set(piece, filled)
        filled += piece.length
        at += piece.length
        if (filled === 64) {
          compress(state, block, 0)
          filled = 0
        }
      }
    },
    hex: () => {
      block.fill(0, filled)
      block[filled] = 0x80
      if (filled >= 56) {
        compress(state, block, 0)
        block.fill(0)
      }
      const view = new DataView(block.buffer)
      view.setUint32(56, Math.floor(length / 2 ** 29))
      view.setUint32(60, (length * 8) % 2 ** 32)
      compress(state, block, 0)
      return Array.from(state, word => word.toString(16).padStart(8, '0')).join('')
    },
  }
}

const schedule = new Int32Array(64)
const constants = Int32Array.from(primes(64), prime => fraction(Math.cbrt(prime)))

/** Plain loops over typed arrays: closures and destructuring here make it five times slower. */
function compress(state: Uint32Array, bytes: Uint8Array, from: number): void {
  for (let t = 0, at = from; t < 16; t++, at += 4) {
    schedule[t] =
      (word(bytes, at) << 24) | (word(bytes, at + 1) << 16) | (word(bytes, at + 2) << 8) | word(bytes, at + 3)
  }
  for (let t = 16; t < 64; t++) {
    const x = word(schedule, t - 15)
    const y = word(schedule, t - 2)
    const s0 = rotate(x, 7) ^ rotate(x, 18) ^ (x >>> 3)
    const s1 = rotate(y, 17) ^ rotate(y, 19) ^ (y >>> 10)
    schedule[t] = (word(schedule, t - 16) + s0 + word(schedule, t - 7) + s1) | 0
  }
  let a = word(state, 0) | 0
  let b = word(state, 1) | 0
  let c = word(state, 2) | 0
  let d = word(state, 3) | 0
  let e = word(state, 4) | 0
  let f = word(state, 5) | 0
  let g = word(state, 6) | 0
  let h = word(state, 7) | 0
  for (let t = 0; t < 64; t++) {
    const s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)
    const t1 = (h + s1 + ((e & f) ^ (~e & g)) + word(constants, t) + word(schedule, t)) | 0
    const s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)
    const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0
    h = g
    g = f
    f = e
    e = (d + t1) | 0
    d = c
    c = b
    b = a
    a = (t1 + t2) | 0
  }
  state[0] = word(state, 0) + a
  state[1] = word(state, 1) + b
  state[2] = word(state, 2) + c
  state[3] = word(state, 3) + d
  state[4] = word(state, 4) + e
  state[5] = word(state, 5) + f
  state[6] = word(state, 6) + g
  state[7] = word(state, 7) + h
}

/** All indexes above are within their arrays; the type does not know. */
function word(array: Int32Array | Uint32Array | Uint8Array, at: number): number {
  return array[at] as number
}

function rotate(value: number, by: number): number {
  return (value >>> by) | (value << (32 - by))
}

/** The first 32 bits after the point: a double has them exactly, for primes as small as these. */
function fraction(value: number): number {
  return Math.floor((value - Math.floor(value)) * 2 ** 32)
}

function primes(count: number): number[] {
  const found: number[] = []
  for (let n = 2; found.length < count; n++) if (found.every(prime => n % prime !== 0)) found.push(n)
  return found
}
