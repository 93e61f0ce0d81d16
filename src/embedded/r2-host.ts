// A process of its own for miniflare, which otherwise takes over SIGINT and SIGTERM of the process it is in
// and calls process.exit() there, before a daemon has drained. Reads its options as one line of stdin,
// answers its URL as one line of stdout, and ends when stdin does: with whoever started it.
import { once } from 'node:events'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'

/** What r2.ts sends. */
export interface R2HostOptions {
  /** Where the package is: not always where this file would look for it. */
  miniflare: string
  bucket: string
  accessKeyId: string
  secretAccessKey: string
  persistDir?: string
  port?: number
}

const lines = createInterface({ input: process.stdin })
const ended = once(lines, 'close')
const [line] = await once(lines, 'line')
const options: R2HostOptions = JSON.parse(line)
const { Miniflare, NoOpLog }: typeof import('miniflare') = createRequire(import.meta.url)(options.miniflare)
const { accessKeyId, secretAccessKey } = options
const miniflare = new Miniflare({
  modules: true,
  script: 'export default { fetch: () => new Response(null, { status: 404 }) }',
  compatibilityDate: '2026-01-01',
  host: '127.0.0.1',
  port: options.port ?? 0,
  r2Buckets: { BUCKET: { id: options.bucket, s3Credentials: { accessKeyId, secretAccessKey } } },
  r2Persist: options.persistDir ?? false,
  cf: false, // else it fetches a description of the edge from workers.cloudflare.com
  log: new NoOpLog(),
  handleRuntimeStdio: (stdout: Readable, stderr: Readable) => {
    stdout.resume()
    stderr.resume()
  },
})
const url = await miniflare.ready
process.stdout.write(`${url.origin}\n`)
await ended
// No process.exit(): removing its temporary folder goes on after this.
await miniflare.dispose()
