// One long value out of Postgres, piece by piece.
import type { Readable } from 'node:stream'
import type pg from 'pg'
import { to as copyTo } from 'pg-copy-streams'
import { RowError } from '../errors.ts'

const signature = Buffer.from('PGCOPY\n\xff\r\n\0', 'latin1')
/** Longest silence of the server within one value; it needs seconds before the first byte of the longest. */
const silenceTimeoutMs = 120_000

/** Signature, flags (int32), length of the header extension (int32). */
const headerBytes = signature.length + 8

/**
 * Streams the single value that `selectSql` yields, as its exact bytes; of a text in UTF-8.
 *
 * Binary COPY, since its length prefix gives the bytes with no unescaping.
 * (Format: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format".)
 *
 * The connection is in use until the stream is read to its end; if it is not, the caller must destroy the
 * connection, on which the rest of the value would still arrive.
 * @param selectSql yields at most one row of one text or bytea column; COPY takes no bind parameters
 * @throws {RowError} `row_changed` when it yields no row
 */
export async function* copyOut(client: pg.ClientBase, selectSql: string): AsyncGenerator<Buffer> {
  const copy: Readable = client.query(copyTo(`copy (${selectSql}) to stdout (format binary)`))
  let pending: Buffer = Buffer.alloc(0)
  let remaining: number | null = null
  for await (const chunk of withinSilence(copy, silenceTimeoutMs)) {
    let data: Buffer = chunk
    if (remaining === null) {
      pending = pending.length === 0 ? data : Buffer.concat([pending, data])
      // Header, then per row: int16 field count, int32 length, the bytes. A field count of -1 is the end.
      if (pending.length < headerBytes + 2) continue
      if (!pending.subarray(0, signature.length).equals(signature))
        throw new Error('COPY did not answer in binary format')
      const rowStart = headerBytes + pending.readInt32BE(signature.length + 4)
      if (pending.length < rowStart + 2) continue
      if (pending.readInt16BE(rowStart) === -1) throw rowChanged()
      if (pending.length < rowStart + 6) continue
      remaining = pending.readInt32BE(rowStart + 2)
      if (remaining < 0) throw rowChanged()
      data = pending.subarray(rowStart + 6)
      pending = Buffer.alloc(0)
    }
    const value: Buffer = data.subarray(0, remaining)
    remaining -= value.length
    if (value.length > 0) yield value
  }
  if (remaining === null) throw rowChanged()
  if (remaining > 0) throw new Error(`COPY ended ${remaining} bytes early`)
}

/** The stream's chunks; errors when the next one does not come in time. Time spent by the reader does not count. */
async function* withinSilence(stream: Readable, timeoutMs: number): AsyncGenerator<Buffer> {
  const chunks: AsyncIterator<Buffer> = stream[Symbol.asyncIterator]()
  for (;;) {
    const timer = setTimeout(
      () => stream.destroy(new Error(`query read timeout: COPY was silent for ${timeoutMs} ms`)),
      timeoutMs,
    )
    const next = await chunks.next().finally(() => clearTimeout(timer))
    if (next.done === true) return
    yield next.value
  }
}

export function rowChanged(): RowError {
  return new RowError('row_changed', 'the row changed before it was read', { retryable: true })
}
