// An S3 endpoint in front of the simulator for one process: it does to requests what the weather says, and kills the
// process right before or right after a request is done.
import { Agent, createServer, type IncomingMessage, request, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { pick, type Random } from '../src/demo/random.ts'
import { latestLandingMs, storeTimeoutMs } from './settings.ts'
import { type Fault, fair, faults, type Weather } from './weather.ts'

export interface OpenUpload {
  key: string
  /** That have arrived. */
  parts: number
}

/** What several proxies have in common. */
export interface StoreTraffic {
  weather: Weather
  requests: number
  faults: Map<Fault, number>
  /** Multipart uploads that were opened, and neither completed nor aborted by way of a proxy. */
  openUploads: Map<string, OpenUpload>
}

export const newTraffic = (): StoreTraffic => ({
  weather: fair,
  requests: 0,
  faults: new Map(),
  openUploads: new Map(),
})

export type KillMoment = 'before' | 'after'

export interface StoreProxy {
  endpoint: string
  /** The next request of this kind kills the process, before it is done or after. */
  armKill(moment: KillMoment, matches: (operation: string) => boolean): void
  close(): Promise<void>
}

const longestDeletionMs = 1500

const agent = new Agent({ keepAlive: true, maxSockets: 128 })

/** @param kill ends the process that speaks through this proxy; told the operation and the moment */
export async function startStoreProxy(
  upstream: string,
  traffic: StoreTraffic,
  random: Random,
  kill: (operation: string, moment: KillMoment) => void,
): Promise<StoreProxy> {
  const target = new URL(upstream)
  let armed: { moment: KillMoment; matches: (operation: string) => boolean } | null = null

  const forward = (incoming: IncomingMessage, body: Buffer) =>
    new Promise<{ status: number; headers: IncomingMessage['headers']; body: Buffer }>((resolve, reject) => {
      const forwarded = request(
        {
          agent,
          host: target.hostname,
          port: target.port,
          method: incoming.method,
          path: incoming.url,
          // The signature covers the host that the client spoke to, which the simulator takes from the header.
          headers: incoming.headers,
        },
        async answer => {
          const chunks: Buffer[] = []
          try {
            for await (const chunk of answer) chunks.push(chunk)
          } catch (error) {
            reject(error)
            return
          }
          const answered = {
            status: answer.statusCode ?? 502,
            headers: answer.headers,
            body: Buffer.concat(chunks),
          }
          noteUploads(traffic, incoming, answered)
          resolve(answered)
        },
      )
      forwarded.on('error', reject)
      forwarded.end(body)
    })

  const serve = async (incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> => {
    traffic.requests++
    const operation = operationOf(incoming)
    const cut = () => incoming.socket.destroy()
    const killing = armed?.matches(operation) ? armed.moment : null
    if (killing !== null) armed = null
    const { rate, longestDelayMs } = traffic.weather
    const fault = killing === null && random() < rate ? pick(random, faults) : null
    const delayMs = random() * longestDelayMs
    if (fault !== null) traffic.faults.set(fault, (traffic.faults.get(fault) ?? 0) + 1)

    if (fault === 'reset in the request') {
      incoming.once('data', cut)
      incoming.once('end', cut)
      return
    }
    const chunks: Buffer[] = []
    for await (const chunk of incoming) chunks.push(chunk)
    const body = Buffer.concat(chunks)

    if (killing === 'before') {
      kill(operation, killing)
      cut()
      return
    }
    if (fault === 'no answer') return
    if (fault === '429' || fault === '500' || fault === '503') {
      refuse(outgoing, Number(fault))
      return
    }
    if (fault === 'lands late') {
      // By now nobody waits for it any more.
      await sleep(storeTimeoutMs + random() * (latestLandingMs - storeTimeoutMs))
      await forward(incoming, body)
      return
    }
    await sleep(delayMs)
    const answer = await forward(incoming, body)
    // Deleted, and whoever asked for it does not know yet: what is deleted too early is missed now.
    if (operation === 'DeleteObjects' && longestDelayMs > 0) await sleep(random() * longestDeletionMs)
    if (killing === 'after') {
      kill(operation, killing)
      cut()
      return
    }
    if (fault === 'answer lost') cut()
    else if (fault === 'done but answered 500') refuse(outgoing, 500)
    else {
      outgoing.writeHead(answer.status, answer.headers)
      if (fault === 'reset in the answer') {
        outgoing.write(answer.body.subarray(0, Math.floor(answer.body.length / 2)), cut)
      } else outgoing.end(answer.body)
    }
  }

  const server = createServer((incoming, outgoing) => {
    incoming.on('error', () => undefined)
    outgoing.on('error', () => undefined)
    serve(incoming, outgoing).catch(() => incoming.socket.destroy())
  })
  server.keepAliveTimeout = 60_000
  server.listen(0, '127.0.0.1')
  await new Promise(resolve => server.once('listening', resolve))
  const { port } = server.address() as AddressInfo
  return {
    endpoint: `http://127.0.0.1:${port}${target.pathname}`,
    armKill: (moment, matches) => {
      armed = { moment, matches }
    },
    close: () =>
      new Promise(resolve => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
}

function refuse(outgoing: ServerResponse, status: number): void {
  const code = status === 429 ? 'TooManyRequests' : status === 503 ? 'SlowDown' : 'InternalError'
  outgoing.writeHead(status, { 'content-type': 'application/xml' })
  outgoing.end(`<?xml version="1.0"?><Error><Code>${code}</Code><Message>as told</Message></Error>`)
}

/** S3's name for a request, as far as kills tell them apart. */
function operationOf(incoming: IncomingMessage): string {
  const url = incoming.url ?? ''
  const owner = url.includes('pg-lighter-owner.json') ? 'Owner' : ''
  switch (incoming.method) {
    case 'PUT':
      return url.includes('partNumber=') ? 'UploadPart' : `Put${owner}Object`
    case 'POST':
      return /[?&]delete/.test(url)
        ? 'DeleteObjects'
        : url.includes('uploadId=')
          ? 'CompleteMultipartUpload'
          : 'CreateMultipartUpload'
    case 'DELETE':
      return 'AbortMultipartUpload'
    default:
      return `Get${owner}Object`
  }
}

function noteUploads(
  { openUploads }: StoreTraffic,
  incoming: IncomingMessage,
  answer: { status: number; body: Buffer },
): void {
  if (answer.status >= 300) return
  const url = incoming.url ?? ''
  const id = /[?&]uploadId=([^&]+)/.exec(url)?.[1]
  if (id === undefined) {
    const opened = /[?&]uploads/.test(url)
      ? /<UploadId>([^<]+)</.exec(answer.body.toString())?.[1]
      : undefined
    const key = decodeURIComponent(/\/(torture\/tenants\/[^?]+)/.exec(url)?.[1] ?? '')
    if (opened !== undefined) openUploads.set(encodeURIComponent(opened), { key, parts: 0 })
  } else if (!url.includes('partNumber=')) openUploads.delete(id)
  else {
    // A part whose answer came after that of the abort went with it.
    const upload = openUploads.get(id)
    if (upload !== undefined) upload.parts++
  }
}
