// Whether a text that passes in pieces has one of some words in it.

export interface TextSearch {
  look(piece: Buffer): void
  found(): boolean
}

/** @param words of one byte at least; one may begin in a piece and end in a later one */
export function createTextSearch(words: string[]): TextSearch {
  const needles = words.map(word => Buffer.from(word))
  const overlap = Math.max(0, ...needles.map(needle => needle.length - 1))
  /** The end of what has passed, in which a word may have begun. */
  let tail: Buffer = Buffer.alloc(0)
  let found = false
  const isIn = (text: Buffer) => needles.some(needle => text.includes(needle))
  return {
    look: piece => {
      if (found) return
      const seam = Buffer.concat([tail, piece.subarray(0, overlap)])
      found = isIn(seam) || isIn(piece)
      const end = piece.length >= overlap ? piece : Buffer.concat([tail, piece])
      // A copy, which does not keep the piece in memory.
      tail = Buffer.from(end.subarray(Math.max(0, end.length - overlap)))
    },
    found: () => found,
  }
}
