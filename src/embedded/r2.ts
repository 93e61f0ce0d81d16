// Cloudflare's own R2 simulator, spoken to over the S3 protocol like the real one.
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { z } from 'zod'
import { LighterError } from '../errors.ts'
import { resolveOptional } from './optional.ts'
import type { R2HostOptions } from './r2-host.ts'
import { endWithUs } from './watchdog.ts'

export interface R2Options {
  bucket: string
  /** Where objects and credentials are kept between runs; without it they go with the process. */
  persistDir?: string
  /** A free one by default. */
  port?: number
  /** As `port`, but a free one is chosen when the simulator does not start on it. */
  preferredPort?: number
}

export interface RunningR2 {
  /** For clients in path style, region `auto`. */
  readonly endpoint: string
  readonly bucket: string
  readonly accessKeyId: string
  readonly secretAccessKey: string
  /** Resolves when the simulator is gone, at once if it already is. */
  stop(): Promise<void>
}

const startTimeoutMs = 30_000
const stopTimeoutMs = 5_000

const credentialsSchema = z.object({ accessKeyId: z.string().min(1), secretAccessKey: z.string().min(1) })
type Credentials = z.infer<typeof credentialsSchema>

/** Starts a simulator with one bucket. It ends with this process, and Ctrl-C in a terminal does not reach it. */
export async function startR2({ preferredPort, ...given }: R2Options): Promise<RunningR2> {
  if (given.port === undefined && preferredPort !== undefined) {
    try {
      return await startR2({ ...given, port: preferredPort })
    } catch (error) {
      if (!(error instanceof LighterError && error.code === 'embedded_r2')) throw error
    }
  }
  const { bucket, persistDir, port } = given
  const keepIn = persistDir === undefined ? undefined : path.resolve(persistDir)
  const credentials = keepIn === undefined ? generateCredentials() : await keptCredentials(keepIn)
  const options: R2HostOptions = {
    miniflare: resolveOptional('miniflare'),
    bucket,
    ...credentials,
    ...(keepIn === undefined ? {} : { persistDir: path.join(keepIn, 'objects') }),
    ...(port === undefined ? {} : { port }),
  }
  const host = launch(options)
  try {
    const origin = await host.origin
    return { endpoint: `${origin}/cdn-cgi/local/r2/s3`, bucket, ...credentials, stop: () => stop(host) }
  } catch (error) {
    await stop(host)
    throw error
  }
}

interface Host {
  child: ChildProcess
  origin: Promise<string>
  ended: Promise<void>
}

function launch(options: R2HostOptions): Host {
  // The file beside this one, in TypeScript from the sources and in JavaScript from the package.
  const program = fileURLToPath(new URL(`./r2-host${path.extname(import.meta.url)}`, import.meta.url))
  // Options meant for this process, an inspector or a test runner's loader, are not for that one.
  const { NODE_OPTIONS: _, VSCODE_INSPECTOR_OPTIONS: __, ...env } = process.env
  const child = spawn(process.execPath, [program], { env, detached: true, stdio: ['pipe', 'pipe', 'pipe'] })
  child.stdin.on('error', () => undefined)
  child.stdin.write(`${JSON.stringify(options)}\n`)
  let said = ''
  let complaint = ''
  child.stderr.on('data', chunk => {
    complaint = (complaint + chunk).slice(-4_000)
  })
  const ended = new Promise<void>(resolve => {
    child.once('error', () => resolve())
    child.once('close', () => resolve())
  })
  if (child.pid !== undefined) endWithUs(-child.pid, 'TERM', ended)
  // The simulator's runtime does not notice that the process which had started it was killed.
  void ended.then(() => killGroup(child))
  const origin = new Promise<string>((resolve, reject) => {
    const fail = (why: string) =>
      reject(
        new LighterError('embedded_r2', `The R2 simulator did not start: ${why}\n${complaint.trim()}`.trim()),
      )
    const timer = setTimeout(() => fail(`not ready after ${startTimeoutMs / 1000} s`), startTimeoutMs)
    child.stdout.on('data', chunk => {
      said += chunk
      if (!said.includes('\n')) return
      clearTimeout(timer)
      resolve(said.trim())
    })
    void ended.then(() => {
      clearTimeout(timer)
      fail('it ended')
    })
    child.once('error', error => fail(error.message))
  })
  return { child, origin, ended }
}

async function stop({ child, ended }: Host): Promise<void> {
  child.stdin?.end()
  const cancel = new AbortController()
  const late = sleep(stopTimeoutMs, undefined, { signal: cancel.signal }).then(
    () => killGroup(child),
    () => undefined,
  )
  await ended
  cancel.abort()
  await late
}

/** The simulator's own runtime is a child of the process we started, and in its group. */
function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return
  try {
    process.kill(process.platform === 'win32' ? child.pid : -child.pid, 'SIGKILL')
  } catch {
    // It has just ended by itself.
  }
}

function generateCredentials(): Credentials {
  return { accessKeyId: randomBytes(16).toString('hex'), secretAccessKey: randomBytes(32).toString('hex') }
}

/** Generated at the first start, so that what was configured with them keeps working. */
async function keptCredentials(persistDir: string): Promise<Credentials> {
  await mkdir(persistDir, { recursive: true, mode: 0o700 })
  const file = path.join(persistDir, 'credentials.json')
  const kept = await readFile(file, 'utf8').catch(() => undefined)
  if (kept !== undefined) return credentialsSchema.parse(JSON.parse(kept))
  const credentials = generateCredentials()
  await writeFile(`${file}.new`, `${JSON.stringify(credentials)}\n`, { mode: 0o600 })
  await rename(`${file}.new`, file)
  return credentials
}
