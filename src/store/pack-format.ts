// The pack format: what a frame's bytes are. docs/formats.md says it for other programs.
import type { Codec } from '../config.ts'
import { encodeFrame } from './codec.ts'

const newline = Buffer.from('\n')

/** Text of one frame. 16 KiB compresses a third worse, 256 KiB doubles what one read must fetch. */
export const frameTextBytes = 64 * 1024

/** As many payloads can be in a frame: small ones, of which a frame could hold tens of thousands. */
export const framePayloads = 1000

/** Payloads one after the other, each with a newline behind it, compressed in one go. */
export function encodePayloads(payloads: Buffer[], codec: Codec): { bytes: Buffer; places: number[] } {
  const places: number[] = []
  let textBytes = 0
  const lines: Buffer[] = []
  for (const payload of payloads) {
    places.push(textBytes)
    lines.push(payload, newline)
    textBytes += payload.length + 1
  }
  return { bytes: encodeFrame(codec, Buffer.concat(lines, textBytes)), places }
}
