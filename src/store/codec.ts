// Compression of frames and of whole objects, and its inverse with a limit on what comes out.

import type { Transform } from 'node:stream'
// As a whole: a Node without zstd must be able to load this file (src/node-version.ts).
import zlib from 'node:zlib'
import type { Codec } from '../config.ts'
import { ArtifactError, messageOf } from '../errors.ts'

// Level 1: on JSON of this kind higher levels cost several times the CPU for a few per cent.
const zstdParams = { params: { [zlib.constants.ZSTD_c_compressionLevel]: 1 } }
const gzipParams = { level: 6 }

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
  try {
    if (encoding === 'zstd') return zlib.zstdDecompressSync(frame, { maxOutputLength: maxBytes })
    if (encoding === 'gzip') return zlib.gunzipSync(frame, { maxOutputLength: maxBytes })
  } catch (error) {
    throw new ArtifactError('artifact_corrupt', `frame can't be decompressed: ${messageOf(error)}`, {
      cause: error,
    })
  }
  if (encoding === null) return frame
  throw new ArtifactError('artifact_encoding_unknown', `unknown content encoding "${encoding}"`, {
    hint: 'Written by a newer version of pg-lighter? Upgrade this one.',
  })
}

export function encodeStream(codec: Codec): Transform | null {
  if (codec === 'zstd') return zlib.createZstdCompress(zstdParams)
  if (codec === 'gzip') return zlib.createGzip(gzipParams)
  return null
}

export function decodeStream(encoding: string | null): Transform | null {
  if (encoding === 'zstd') return zlib.createZstdDecompress()
  if (encoding === 'gzip') return zlib.createGunzip()
  return null
}
