// What the tests run on: servers out of npm packages, or containers.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import type { TestContext } from 'vitest'
import type { RunningPostgres } from '../../../src/embedded/postgres.ts'

/** As TEST_BACKEND says. */
export const backend = backendOf(process.env.TEST_BACKEND)

export interface TestPostgres {
  url: RunningPostgres['url']
  /** At once: nothing is flushed. */
  stop(): Promise<void>
}

export interface BackendServers {
  postgres: Pick<TestPostgres, 'url'>
  store: { endpoint: string; bucket: string; accessKeyId: string; secretAccessKey: string }
  stop(): Promise<void>
}

function backendOf(name: string | undefined): 'embedded' | 'containers' {
  if (name === undefined || name === '' || name === 'embedded') return 'embedded'
  if (name === 'containers') return 'containers'
  throw new Error(`TEST_BACKEND is ${JSON.stringify(name)}, and may be embedded (the default) or containers`)
}

/** For tests of the embedded servers themselves: whoever chose containers may have a machine that can not run those. */
export function needsEmbedded(context: TestContext): void {
  context.skip(backend !== 'embedded', 'about the embedded servers, and TEST_BACKEND=containers')
}

/** What keeps Docker from being used; undefined when a daemon answers. */
export async function dockerMissing(): Promise<string | undefined> {
  try {
    await promisify(execFile)('docker', ['version', '--format', '{{.Server.Version}}'])
    return undefined
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}
