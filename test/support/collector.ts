// A collector of traces: an OTLP receiver over HTTP, JSON, that can be in any kind of trouble.
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'

export interface ReceivedSpan {
  traceId: string
  spanId: string
  parentSpanId: string | undefined
  name: string
  kind: number
  /** In ms since 1970. */
  start: number
  end: number
  attributes: Record<string, string | number | boolean>
  status: { code?: number; message?: string }
  events: { name: string; attributes: Record<string, string | number | boolean> }[]
}

export interface Collector {
  url: string
  spans: ReceivedSpan[]
  /** Of the process that sends. */
  resource: Record<string, string | number | boolean>
  requests: { path: string; headers: Record<string, unknown> }[]
  /** silent: takes requests and never answers; a number: answers with that status. */
  trouble: null | 'silent' | number
  close(): Promise<void>
}

interface Value {
  stringValue?: string
  intValue?: string | number
  doubleValue?: number
  boolValue?: boolean
}
type Pairs = { key: string; value: Value }[]

const attributesOf = (pairs: Pairs = []) =>
  Object.fromEntries(
    pairs.map(({ key, value }) => [
      key,
      value.stringValue ?? value.doubleValue ?? value.boolValue ?? Number(value.intValue),
    ]),
  )

interface Body {
  resourceSpans: {
    resource: { attributes: Pairs }
    scopeSpans: {
      spans: (Omit<ReceivedSpan, 'attributes' | 'events' | 'start' | 'end'> & {
        startTimeUnixNano: string
        endTimeUnixNano: string
        attributes?: Pairs
        events?: { name: string; attributes?: Pairs }[]
      })[]
    }[]
  }[]
}

export async function startCollector(): Promise<Collector> {
  const server = createServer(async (request, response) => {
    collector.requests.push({ path: request.url ?? '', headers: request.headers })
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk)
    if (collector.trouble === 'silent') return
    if (collector.trouble !== null) {
      response.writeHead(collector.trouble).end()
      return
    }
    const body: Body = JSON.parse(Buffer.concat(chunks).toString())
    for (const { resource, scopeSpans } of body.resourceSpans) {
      collector.resource = attributesOf(resource.attributes)
      for (const span of scopeSpans.flatMap(scope => scope.spans)) {
        collector.spans.push({
          ...span,
          parentSpanId: span.parentSpanId || undefined,
          start: Number(BigInt(span.startTimeUnixNano) / 1000n) / 1000,
          end: Number(BigInt(span.endTimeUnixNano) / 1000n) / 1000,
          attributes: attributesOf(span.attributes),
          events: (span.events ?? []).map(event => ({
            name: event.name,
            attributes: attributesOf(event.attributes),
          })),
        })
      }
    }
    response.writeHead(200, { 'content-type': 'application/json' }).end('{}')
  })
  server.listen(0, '127.0.0.1')
  await new Promise(resolve => server.once('listening', resolve))
  const collector: Collector = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    spans: [],
    resource: {},
    requests: [],
    trouble: null,
    close: () =>
      new Promise(resolve => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
  return collector
}
