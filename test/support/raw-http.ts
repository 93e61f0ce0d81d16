// Requests that no HTTP client would send, and answers as the bytes they are.
import { connect } from 'node:net'
import { setTimeout } from 'node:timers/promises'

interface RawAnswer {
  status: number
  headers: Map<string, string>
  body: string
}

/**
 * Writes the pieces one after another, each in its own packet, and reads until the server closes the connection.
 * @returns what came; closed without an answer: an empty text
 */
export async function sendRaw(
  url: string,
  pieces: Iterable<string | Buffer> | AsyncIterable<string | Buffer>,
  timeoutMs = 30_000,
): Promise<string> {
  const { hostname, port } = new URL(url)
  const socket = connect({ host: hostname, port: Number(port), noDelay: true })
  const chunks: Buffer[] = []
  socket.on('data', chunk => chunks.push(chunk))
  // Reset by the server: as good as closed.
  socket.on('error', () => undefined)
  const closed = new Promise<void>(resolve => socket.once('close', () => resolve()))
  const late = new AbortController()
  try {
    for await (const piece of pieces) {
      if (socket.destroyed) break
      socket.write(piece)
      await new Promise(resolve => setImmediate(resolve))
    }
    await Promise.race([
      closed,
      setTimeout(timeoutMs, undefined, { signal: late.signal }).then(() => {
        throw new Error(`the connection was open after ${timeoutMs} ms`)
      }),
    ])
  } finally {
    late.abort()
    socket.destroy()
  }
  return Buffer.concat(chunks).toString('latin1')
}

/** The answers of one connection, one after another. Each must say how long it is. */
export function parseAnswers(text: string): RawAnswer[] {
  const answers: RawAnswer[] = []
  for (let rest = text; rest !== ''; ) {
    const end = rest.indexOf('\r\n\r\n')
    if (end === -1) throw new Error(`no answer: ${rest.slice(0, 200)}`)
    const [first = '', ...lines] = rest.slice(0, end).split('\r\n')
    const headers = new Map(
      lines.map(line => {
        const colon = line.indexOf(':')
        return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()]
      }),
    )
    rest = rest.slice(end + 4)
    const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(first)?.[1])
    if (headers.get('transfer-encoding') === 'chunked') {
      // Node's own refusals, which have no body.
      if (!rest.startsWith('0\r\n\r\n')) throw new Error('an answer in chunks is not expected here')
      rest = rest.slice(5)
      answers.push({ status, headers, body: '' })
      continue
    }
    const length = Number(headers.get('content-length') ?? 0)
    answers.push({ status, headers, body: rest.slice(0, length) })
    rest = rest.slice(length)
  }
  return answers
}
