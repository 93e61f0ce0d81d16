// Compression of frames and of whole objects, and its inverse with a limit on what comes out.

import type { Transform } from 'node:stream'
// As a whole: a Node without zstd must be able to load this file (src/node-version.ts).
import zlib from 'node:zlib'
import type { Codec } from '../config.ts'
import { ArtifactError, messageOf } from '../errors.ts'

/** A way to compress. What it makes of several texts, one behind the other, is what it makes of each. */
interface Compression {
  /** The name in `content_encoding`, null when nothing is compressed. */
  encoding: 'zstd' | 'gzip' | null
  /** Of a pack's key. */
  extension: string
  encode: (text: Buffer) => Buffer
  decode: (frame: Buffer, maxOutputLength: number) => Buffer
  /** Null: bytes pass as they are. */
  encodeStream: () => Transform | null
  decodeStream: () => Transform | null
}

// Level 1: on JSON of this kind higher levels cost several times the CPU for a few per cent.
const zstdParams = { params: { [zlib.constants.ZSTD_c_compressionLevel]: 1 } }
const gzipParams = { level: 6 }
/** What reading may remember: 8 MiB, as much as every decoder should take (RFC 8878). Ours write with 512 KiB. */
const unzstdParams = { params: { [zlib.constants.ZSTD_d_windowLogMax]: 23 } }

const codecs: Record<Codec, Compression> = {
  zstd: {
    encoding: 'zstd',
    extension: '.zst',
    encode: text => zlib.zstdCompressSync(text, zstdParams),
    decode: (frame, maxOutputLength) => zlib.zstdDecompressSync(frame, { ...unzstdParams, maxOutputLength }),
    encodeStream: () => zlib.createZstdCompress(zstdParams),
    decodeStream: () => zlib.createZstdDecompress(unzstdParams),
  },
  gzip: {
    encoding: 'gzip',
    extension: '.gz',
    encode: text => zlib.gzipSync(text, gzipParams),
    decode: (frame, maxOutputLength) => zlib.gunzipSync(frame, { maxOutputLength }),
    encodeStream: () => zlib.createGzip(gzipParams),
    decodeStream: () => zlib.createGunzip(),
  },
  none: {
    encoding: null,
    extension: '',
    encode: text => text,
    decode: (frame, maxOutputLength) => {
      if (frame.length <= maxOutputLength) return frame
      throw new Error(`${frame.length} bytes instead of ${maxOutputLength} at most`)
    },
    encodeStream: () => null,
    decodeStream: () => null,
  },
}

export const encodingOf = (codec: Codec) => codecs[codec].encoding

export const extensionOf = (codec: Codec) => codecs[codec].extension

/** One frame: a zstd frame or gzip member on its own, so that frames can be concatenated. */
export const encodeFrame = (codec: Codec, text: Buffer): Buffer => codecs[codec].encode(text)

export const encodeStream = (codec: Codec): Transform | null => codecs[codec].encodeStream()

/** @throws {ArtifactError} `artifact_encoding_unknown` */
function ofEncoding(encoding: string | null): Compression {
  const found = Object.values(codecs).find(codec => codec.encoding === encoding)
  if (found !== undefined) return found
  throw new ArtifactError('artifact_encoding_unknown', `unknown content encoding "${encoding}"`, {
    hint: 'Written by a newer version of pg-lighter? Upgrade this one.',
  })
}

/**
 * Inverse of `encodeFrame`.
 * @param maxBytes more than this coming out means that the frame is not what its row says
 * @throws {ArtifactError} `artifact_corrupt`
 */
export function decodeFrame(encoding: string | null, frame: Buffer, maxBytes: number): Buffer {
  const { decode } = ofEncoding(encoding)
  try {
    // An empty result must be allowed too, but no decoder takes 0 for a limit.
    return decode(frame, Math.max(maxBytes, 1))
  } catch (error) {
    throw new ArtifactError('artifact_corrupt', `frame can't be decompressed: ${messageOf(error)}`, {
      cause: error,
    })
  }
}

/** How long an object, or a frame, of `payloadBytes` can be at most: what does not compress grows a little. */
export function storedBytesAtMost(encoding: string | null, payloadBytes: number): number {
  return encoding === null ? payloadBytes : payloadBytes + Math.ceil(payloadBytes / 128) + 1024
}

export const decodeStream = (encoding: string | null): Transform | null => ofEncoding(encoding).decodeStream()
