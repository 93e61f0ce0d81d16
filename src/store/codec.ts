// Compression of frames and of whole objects, and its inverse with a limit on what comes out.

import type { Transform } from 'node:stream'
// As a whole: a Node without zstd must be able to load this file (src/node-version.ts).
import zlib from 'node:zlib'
import type { Codec } from '../config.ts'
import { ArtifactError, messageOf } from '../errors.ts'

// Level 1: on JSON of this kind higher levels cost several times the CPU for a few per cent.
const zstdParams = { params: { [zlib.constants.ZSTD_c_compressionLevel]: 1 } }
const gzipParams = { level: 6 }
/** What reading may remember: 8 MiB, as much as every decoder should take (RFC 8878). Ours write with 512 KiB. */
const unzstdParams = { params: { [zlib.constants.ZSTD_d_windowLogMax]: 23 } }

/** The name in `content_encoding`, null when nothing is compressed. */
export function encodingOf(codec: Codec): 'zstd' | 'gzip' | null {
  return codec === 'none' ? null : codec
}

/** One frame: a zstd frame or gzip member on its own, so that frames can be concatenated. */
export function encodeFrame(codec: Codec, text: Buffer): Buffer {
  if (codec === 'zstd') return zlib.zstdCompressSync(text, zstdParams)
  if (codec === 'gzip') return zlib.gzipSync(text, gzipParams)
  return text
}

/**
 * Inverse of `encodeFrame`.
 * @param maxBytes more than this coming out means that the frame is not what its row says
 * @throws {ArtifactError} `artifact_corrupt`
 */
export function decodeFrame(encoding: string | null, frame: Buffer, maxBytes: number): Buffer {
  // An empty result must be allowed too, but no decoder takes 0 for a limit.
  const maxOutputLength = Math.max(maxBytes, 1)
  try {
    if (encoding === 'zstd') return zlib.zstdDecompressSync(frame, { ...unzstdParams, maxOutputLength })
    if (encoding === 'gzip') return zlib.gunzipSync(frame, { maxOutputLength })
  } catch (error) {
    throw new ArtifactError('artifact_corrupt', `frame can't be decompressed: ${messageOf(error)}`, {
      cause: error,
    })
  }
  if (encoding === null) {
    if (frame.length <= maxBytes) return frame
    throw new ArtifactError('artifact_corrupt', `${frame.length} bytes instead of ${maxBytes} at most`)
  }
  throw new ArtifactError('artifact_encoding_unknown', `unknown content encoding "${encoding}"`, {
    hint: 'Written by a newer version of pg-lighter? Upgrade this one.',
  })
}

/** How long an object, or a frame, of `payloadBytes` can be at most: what does not compress grows a little. */
export function storedBytesAtMost(encoding: string | null, payloadBytes: number): number {
  return encoding === null ? payloadBytes : payloadBytes + Math.ceil(payloadBytes / 128) + 1024
}

export function encodeStream(codec: Codec): Transform | null {
  if (codec === 'zstd') return zlib.createZstdCompress(zstdParams)
  if (codec === 'gzip') return zlib.createGzip(gzipParams)
  return null
}

export function decodeStream(encoding: string | null): Transform | null {
  if (encoding === 'zstd') return zlib.createZstdDecompress(unzstdParams)
  if (encoding === 'gzip') return zlib.createGunzip()
  return null
}
