// The dashboard as a browser asks it: a cookie, the page's token, and where the request comes from.
import { request } from 'node:http'
import type { Answer, TestApi } from './api.ts'

export interface TestSession {
  /** As the Cookie header has it. */
  cookie: string
  csrfToken: string
  get(path: string): Promise<Answer>
  post(path: string, body?: object, headers?: Record<string, string>): Promise<Answer>
}

let addresses = 0
/** Of a client of its own, where a proxy is believed: one address has few tries. */
export const newAddress = () => ({ 'x-forwarded-for': `10.0.${addresses >> 8}.${addresses++ & 255}` })

export const logIn = (api: TestApi, key: string, headers: Record<string, string> = {}): Promise<Answer> =>
  ask(api, 'POST', '/dashboard/login', {
    headers: {
      origin: api.url,
      'content-type': 'application/x-www-form-urlencoded',
      ...newAddress(),
      ...headers,
    },
    body: new URLSearchParams({ key }).toString(),
  })

export async function openSession(api: TestApi, key: string): Promise<TestSession> {
  return sessionOf(api, cookieOf(await logIn(api, key)))
}

/** @param cookie empty: whatever the page gives to who comes without */
export async function sessionOf(api: TestApi, cookie: string): Promise<TestSession> {
  const page = await ask(api, 'GET', '/dashboard', { headers: cookie === '' ? {} : { cookie } })
  const csrfToken = /name="csrf-token" content="([^"]+)"/.exec(page.text)?.[1] ?? ''
  if (csrfToken === '') throw new Error(`no page, but ${page.status} ${page.text.slice(0, 200)}`)
  const all = cookie === '' ? cookieOf(page) : cookie
  return {
    cookie: all,
    csrfToken,
    get: path => ask(api, 'GET', path, { headers: { cookie: all } }),
    post: (path, body = {}, headers = {}) =>
      ask(api, 'POST', path, {
        headers: {
          cookie: all,
          origin: api.url,
          'content-type': 'application/json',
          'x-csrf-token': csrfToken,
          ...headers,
        },
        body: JSON.stringify(body),
      }),
  }
}

export const setCookieOf = (answer: Answer): string => answer.headers.getSetCookie()[0] ?? ''
export const cookieOf = (answer: Answer): string => setCookieOf(answer).split(';')[0] ?? ''

/** As `fetch`, which sets some of the headers as it likes: those of a browser are what this is about. */
export function ask(
  api: TestApi,
  method: string,
  path: string,
  { headers = {}, body }: { headers?: Record<string, string>; body?: string } = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const sent = request(`${api.url}${path}`, { method, headers }, response => {
      const chunks: Buffer[] = []
      response.on('data', chunk => chunks.push(chunk))
      response.on('error', reject)
      response.on('end', () => {
        const bytes = Buffer.concat(chunks)
        const text = bytes.toString('utf8')
        const found = new Headers()
        for (const [name, values] of Object.entries(response.headersDistinct))
          for (const value of values ?? []) found.append(name, value)
        const isJson = found.get('content-type')?.startsWith('application/json') === true
        resolve({
          status: response.statusCode ?? 0,
          headers: found,
          text,
          bytes,
          json: isJson ? JSON.parse(text) : undefined,
        })
      })
    })
    sent.on('error', reject)
    sent.end(body)
  })
}

export interface TestStream {
  status: number
  /** The next event of that name. */
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it as they like
  next(name: string): Promise<any>
  /** Resolves when the server has ended it. */
  ended: Promise<void>
  close(): void
}

/** Server-sent events, as they come. */
export async function openStream(api: TestApi, session: TestSession): Promise<TestStream> {
  const abort = new AbortController()
  const response = await fetch(`${api.url}/dashboard/live`, {
    headers: { cookie: session.cookie },
    signal: abort.signal,
  })
  const events: { name: string; data: unknown }[] = []
  const waiting: { name: string; take: (data: unknown) => void }[] = []
  const ended = (async () => {
    let text = ''
    for await (const chunk of (response.body ?? new ReadableStream()).pipeThrough(new TextDecoderStream())) {
      text += chunk
      const parts = text.split('\n\n')
      text = parts.pop() ?? ''
      for (const part of parts) {
        const [, name = '', data = ''] = /^event: (\w+)\ndata: (.*)$/.exec(part) ?? []
        if (name === '') continue
        const at = waiting.findIndex(each => each.name === name)
        if (at >= 0) waiting.splice(at, 1)[0]?.take(JSON.parse(data))
        else events.push({ name, data: JSON.parse(data) })
      }
    }
  })()
  ended.catch(() => undefined) // closed by us
  return {
    status: response.status,
    next: name => {
      const at = events.findIndex(event => event.name === name)
      if (at >= 0) return Promise.resolve(events.splice(at, 1)[0]?.data)
      return new Promise(take => waiting.push({ name, take }))
    },
    ended,
    close: () => abort.abort(),
  }
}
