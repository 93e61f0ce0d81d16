// A daemon with its HTTP API, and requests to it.
import type { Daemon } from '../../src/daemon.ts'
import { startDaemon, type TestEnvironment } from './environment.ts'

export interface TestApi {
  url: string
  daemon: Daemon
  /** As a tenant, in the way of AUTH_MODE=dev. `json` is sent as the exact text it is. */
  call(
    tenantId: string | null,
    method: string,
    path: string,
    options?: { json?: string; body?: NonNullable<RequestInit['body']>; headers?: Record<string, string> },
  ): Promise<Answer>
}

export interface Answer {
  status: number
  headers: Headers
  text: string
  bytes: Buffer
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it as they like
  json: any
}

export async function startApi(
  environment: TestEnvironment,
  options: Parameters<typeof startDaemon>[1] = {},
): Promise<TestApi> {
  const daemon = await startDaemon(environment, {
    api: true,
    ...options,
    env: { AUTH_MODE: 'dev', ...options.env },
  })
  const url = daemon.address() ?? ''
  return {
    url,
    daemon,
    call: async (tenantId, method, path, { json, body, headers } = {}) => {
      const response = await fetch(`${url}${path}`, {
        method,
        headers: {
          ...(tenantId !== null && { 'x-tenant-id': tenantId }),
          ...(json !== undefined && { 'content-type': 'application/json' }),
          ...headers,
        },
        ...((json ?? body) !== undefined && { body: json ?? body }),
        ...(body instanceof ReadableStream && { duplex: 'half' }),
      })
      return answerOf(response)
    },
  }
}

async function answerOf(response: Response): Promise<Answer> {
  const bytes = Buffer.from(await response.arrayBuffer())
  const text = bytes.toString('utf8')
  const isJson = response.headers.get('content-type')?.startsWith('application/json') === true
  return {
    status: response.status,
    headers: response.headers,
    text,
    bytes,
    json: isJson && text !== '' ? JSON.parse(text) : undefined,
  }
}
