// The torture as a process of its own, as people run it.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'
import { onTestFinished } from 'vitest'
import type { TortureReport } from '../../torture/report.ts'

export const repository = path.join(import.meta.dirname, '..', '..')

export interface TortureRun {
  code: number | null
  report: TortureReport
  stderr: string
}

/** @param directory of the repository, or of a copy of it */
export async function runTorture(directory: string, args: string[]): Promise<TortureRun> {
  const { NODE_OPTIONS: _, VITEST: __, ...env } = process.env
  const child = spawn(process.execPath, [path.join(directory, 'torture', 'main.ts'), ...args, '--json'], {
    cwd: directory,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  onTestFinished(() => void child.kill('SIGTERM'))
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', chunk => {
    stdout += chunk
  })
  child.stderr.setEncoding('utf8').on('data', chunk => {
    stderr += chunk
  })
  const [code] = await once(child, 'close')
  try {
    return { code, report: JSON.parse(stdout), stderr }
  } catch (cause) {
    throw new Error(`no report, exit status ${code}:\n${stdout}\n${stderr}`, { cause })
  }
}
