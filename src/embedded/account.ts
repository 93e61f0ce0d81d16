// Whom Postgres runs as. It refuses to run as root, so root needs a system user; anyone else is their own.
import { execFile } from 'node:child_process'
import { stat } from 'node:fs/promises'
import { promisify } from 'node:util'
import { LighterError } from '../errors.ts'

const run = promisify(execFile)

export interface Account {
  uid: number
  gid: number
}

/**
 * The account for a server on this directory; undefined means our own.
 *
 * A data directory that somebody else than root owns keeps its owner. A new one goes to `postgres` where
 * that user exists, else to `nobody`, which exists everywhere: no user is ever added to the machine.
 */
export async function accountFor(dataDir: string): Promise<Account | undefined> {
  if (process.getuid?.() !== 0) return undefined
  const owner = await stat(dataDir).catch(() => undefined)
  if (owner !== undefined && owner.uid !== 0) return { uid: owner.uid, gid: owner.gid }
  const account = (await lookUp('postgres')) ?? (await lookUp('nobody'))
  if (account !== undefined) return account
  throw new LighterError(
    'embedded_postgres',
    'Postgres refuses to run as root, and there is no user to run it as',
    {
      hint: 'Run as an ordinary user, or add a system user named postgres.',
    },
  )
}

async function lookUp(name: string): Promise<Account | undefined> {
  try {
    const [uid, gid] = await Promise.all([run('id', ['-u', name]), run('id', ['-g', name])])
    return { uid: Number(uid.stdout), gid: Number(gid.stdout) }
  } catch {
    return undefined
  }
}
