// postmaster.pid: by which a server tells that it runs on a data directory, and how far it is.
import { execFile } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { LighterError } from '../errors.ts'

const run = promisify(execFile)

/** How long a server of an earlier run gets to finish when nobody has told it to, and when somebody has. */
const graceMs = 3_000
const stoppingMs = 60_000

/** Beyond what any system hands out. */
const pidOfNobody = 2_147_483_646

export interface PostmasterFile {
  pid: number
  port: number
  status: string
}

export async function readPostmasterFile(dataDir: string): Promise<PostmasterFile | undefined> {
  const text = await readFile(path.join(dataDir, 'postmaster.pid'), 'utf8').catch(() => undefined)
  if (text === undefined) return undefined
  const lines = text.split('\n').map(line => line.trim())
  return { pid: Number(lines[0]), port: Number(lines[3]), status: lines[7] ?? '' }
}

/**
 * Makes sure that no server of an earlier run is on the directory. One that is shutting down, because the
 * process that had started it was killed, is waited for.
 */
export async function expectNoServer(dataDir: string): Promise<void> {
  const began = Date.now()
  for (;;) {
    const file = await readPostmasterFile(dataDir)
    if (file === undefined || !Number.isInteger(file.pid)) return
    const command = await commandOf(file.pid)
    if (!command?.includes('postgres')) return disownPid(dataDir)
    // Another Postgres altogether: the server we are going to start can tell better than we can.
    if (!command.includes(`port=${file.port}`)) return
    const limitMs = file.status === 'stopping' ? stoppingMs : graceMs
    if (Date.now() - began > limitMs) {
      throw new LighterError(
        'embedded_postgres',
        `${dataDir} is in use: a Postgres runs on it, pid ${file.pid}, port ${file.port}`,
        {
          hint: `Stop the command that started it (another lighter dev?), or name another directory; or stop it: kill -INT ${file.pid}`,
        },
      )
    }
    await sleep(25)
  }
}

/**
 * Postgres refuses to start as long as the pid of a dead server exists. It may: the pid of another program,
 * as in a container that was started anew, or a zombie that nobody collects, as in a container without an
 * init. The rest of the file stays, for Postgres finds in it whether other processes of the dead server
 * still use its memory.
 */
async function disownPid(dataDir: string): Promise<void> {
  const file = path.join(dataDir, 'postmaster.pid')
  const text = await readFile(file, 'utf8').catch(() => undefined)
  if (text !== undefined) await writeFile(file, text.replace(/^\d+/, String(pidOfNobody)))
}

/** The command line of a process; undefined if there is none. */
async function commandOf(pid: number): Promise<string | undefined> {
  try {
    if (process.platform === 'linux') {
      const command = await readFile(`/proc/${pid}/cmdline`, 'utf8')
      return command === '' ? undefined : command // a zombie has no command line
    }
    if (process.platform === 'win32') return undefined
    return (await run('ps', ['-p', String(pid), '-o', 'command='])).stdout
  } catch {
    return undefined
  }
}
