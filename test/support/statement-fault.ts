// Postgres as a client meets it that is not let through with a statement, or does not hear its answer.
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { onTestFinished } from 'vitest'

export interface FaultyPostgres {
  /** The same URL, by way of this proxy. */
  through(url: string): string
  /**
   * Asked of every statement. `drop`: the server never sees it · `drop-answer`: the server does what is asked, and
   * nobody hears of it. The connection is cut either way.
   */
  fault: (sql: string) => null | 'drop' | 'drop-answer'
  /** Told when that has happened. */
  onFault: () => void
}

/** In front of the server that `target` names; gone when the test is. */
export async function startFaultyPostgres(target: string): Promise<FaultyPostgres> {
  const { hostname, port: targetPort } = new URL(target)
  const sockets = new Set<Socket>()
  const track = (socket: Socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined)
    socket.on('close', () => sockets.delete(socket))
  }

  const server = createServer(client => {
    const upstream = connect(Number(targetPort), hostname)
    track(client)
    track(upstream)
    const cut = () => {
      client.destroy()
      upstream.destroy()
      faulty.onFault()
    }
    let started = false
    let withheld = false
    let pending: Buffer = Buffer.alloc(0)
    client.on('data', chunk => {
      pending = Buffer.concat([pending, chunk])
      for (;;) {
        const length = messageLength(pending, started)
        if (length === null || pending.length < length) return
        const message = pending.subarray(0, length)
        pending = pending.subarray(length)
        const sql = started ? statementOf(message) : null
        started = true
        const fault = sql === null ? null : faulty.fault(sql)
        if (fault === 'drop') {
          cut()
          return
        }
        withheld ||= fault === 'drop-answer'
        upstream.write(message)
      }
    })
    upstream.on('data', chunk => {
      if (!withheld) client.write(chunk)
      else if (chunk.includes(readyForQuery)) cut()
    })
    client.on('close', () => upstream.destroy())
    upstream.on('close', () => client.destroy())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => {
    server.close()
    for (const socket of sockets) socket.destroy()
  })

  const { port } = server.address() as AddressInfo
  const faulty: FaultyPostgres = {
    through: url => {
      const changed = new URL(url)
      changed.host = `127.0.0.1:${port}`
      return changed.href
    },
    fault: () => null,
    onFault: () => undefined,
  }
  return faulty
}

/** The server is done with what it was asked: 'Z', its length of 5, the state of the transaction. */
const readyForQuery = Buffer.from([0x5a, 0, 0, 0, 5])

/** With its type, which the first message of a connection does not have; null when too little of it is here. */
function messageLength(buffer: Buffer, typed: boolean): number | null {
  const at = typed ? 1 : 0
  return buffer.length < at + 4 ? null : buffer.readInt32BE(at) + at
}

/** Of a Query, or of a Parse, after the name that it is to have. */
function statementOf(message: Buffer): string | null {
  const type = String.fromCharCode(message[0] ?? 0)
  if (type === 'Q') return message.toString('utf8', 5, message.length - 1)
  if (type !== 'P') return null
  const from = message.indexOf(0, 5) + 1
  return message.toString('utf8', from, message.indexOf(0, from))
}
