import { fork } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'
import type { BenchDatabase } from './servers.ts'
import type { WriterResult } from './writers.ts'

export interface WriteOptions {
  clients: number
  seconds: number
  /** JSON text of each row's metadata. */
  metadata: string
  /** 0: as fast as it goes. */
  perSecond?: number
}

/** Writes as an application does and reports how that went. */
export async function write(database: BenchDatabase, options: WriteOptions): Promise<WriterResult> {
  const child = fork(path.join(import.meta.dirname, 'writers.ts'), {
    env: {
      ...process.env,
      URL_APP: database.urls.application,
      CLIENTS: String(options.clients),
      SECONDS: String(options.seconds),
      METADATA: options.metadata,
      PER_SECOND: String(options.perSecond ?? 0),
    },
  })
  let result: WriterResult | undefined
  child.on('message', message => {
    result = message as WriterResult
  })
  const [code] = await once(child, 'exit')
  if (result === undefined || code !== 0) throw new Error(`the writers ended with ${code}`)
  return result
}

/** Median of several figures. */
export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] ?? 0
}
