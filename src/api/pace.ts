// Clients that send or take their bytes too slowly are cut off: they hold what others wait for.
import type { IncomingMessage, ServerResponse } from 'node:http'

const windowMs = 5000
/** In both directions. */
const slowestBytesPerSecond = 5000
/** One slow window may be an accident: a lost packet, or a wait of ours that ended as the window did. */
const slowWindows = 2

/**
 * Watches one request until its answer has left.
 * @param tooSlow called once; it must end the connection
 */
export function watchPace(
  request: IncomingMessage,
  response: ServerResponse,
  tooSlow: (direction: 'sending' | 'reading') => void,
): void {
  const { socket } = request
  const taken = () => socket.bytesWritten - socket.writableLength
  let before = { sent: socket.bytesRead, taken: taken() }
  let slow = 0
  const timer = setInterval(() => {
    const now = { sent: socket.bytesRead, taken: taken() }
    const enough = (windowMs / 1000) * slowestBytesPerSecond
    // Only who keeps us waiting: neither while bytes lie here unread, nor while we have nothing to send.
    const isSending = !request.complete && request.readableLength === 0
    const isReading = socket.writableLength > 0
    const isSlow =
      (isReading && now.taken - before.taken < enough) ||
      (!isReading && isSending && now.sent - before.sent < enough)
    before = now
    slow = isSlow ? slow + 1 : 0
    if (slow < slowWindows) return
    clearInterval(timer)
    tooSlow(isReading ? 'reading' : 'sending')
  }, windowMs)
  timer.unref()
  response.once('close', () => clearInterval(timer))
}

/** Longer answers are written in pieces of this size, so that their progress can be seen. */
const pieceBytes = 64 * 1024

/** The pieces of an answer that is in memory; null for one that is short. */
export function inPieces(payload: string | Buffer): { length: number; pieces: Iterable<Buffer> } | null {
  if (payload.length <= pieceBytes) return null
  const bytes = typeof payload === 'string' ? Buffer.from(payload) : payload
  function* pieces() {
    for (let at = 0; at < bytes.length; at += pieceBytes) yield bytes.subarray(at, at + pieceBytes)
  }
  return { length: bytes.length, pieces: pieces() }
}
