// A data directory: made once, whole or not at all, and kept between runs with its superuser's password.
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import {
  chmod,
  chown,
  lchown,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises'
import path from 'node:path'
import { LighterError } from '../errors.ts'
import type { Account } from './account.ts'

const passwordFile = 'lighter.password'

/**
 * The directory as the server is told it. Root's server runs as another user, who may not be let into the
 * directories above, /root for one. It is started inside the directory, and what /proc/self/cwd names can
 * be reached without passing through the parents.
 */
export function asSeenByServer(dataDir: string, account: Account | undefined): string {
  return account !== undefined && process.platform === 'linux' ? '/proc/self/cwd' : dataDir
}

/** Our environment less what would change the server behind our back (PGPORT, PGDATA, LC_ALL and such). */
export function serverEnvironment(): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(([name]) => !/^(PG|LC_|LANG)/.test(name))
  return { ...Object.fromEntries(kept), LC_ALL: 'C', TZ: 'UTC' }
}

/** Initialises the directory unless it is; answers the superuser's password. */
export async function ensureDataDir(
  dataDir: string,
  initdb: string,
  account: Account | undefined,
  durable: boolean,
): Promise<string> {
  const content = await readdir(dataDir).catch((): string[] => [])
  if (content.length === 0) await initialise(dataDir, initdb, account, durable)
  else if (!content.includes('PG_VERSION')) {
    throw new LighterError('embedded_postgres', `${dataDir} is not empty and holds no Postgres data`, {
      hint: 'Name an empty or a new directory.',
    })
  }
  if (account !== undefined && (await stat(dataDir)).uid === 0) await giveAway(dataDir, account)
  // A copy made with cp is open to all, and Postgres refuses such a directory.
  await chmod(dataDir, 0o700)
  return (await readFile(path.join(dataDir, passwordFile), 'utf8')).trim()
}

// Made beside its place and moved there when complete: a kill halfway leaves no directory that looks whole.
async function initialise(
  dataDir: string,
  initdb: string,
  account: Account | undefined,
  durable: boolean,
): Promise<void> {
  const making = `${dataDir}.initdb`
  const password = `${making}.password`
  await rm(making, { recursive: true, force: true })
  await mkdir(making, { recursive: true, mode: 0o700 })
  await rm(password, { force: true })
  await writeFile(password, `${randomBytes(18).toString('base64url')}\n`, { mode: 0o600 })
  if (account !== undefined) {
    await chown(making, account.uid, account.gid)
    await chown(password, account.uid, account.gid)
  }
  const passwordInput = await open(password)
  try {
    await runInitdb(initdb, making, account, passwordInput.fd, [
      `--pgdata=${asSeenByServer(making, account)}`,
      // Root's server can't reach the file by its name, for the reason given above, but it is handed it open.
      `--pwfile=${account === undefined ? password : '/dev/stdin'}`,
      '--username=postgres',
      '--auth=scram-sha-256',
      '--locale=C',
      '--encoding=UTF8',
      '--no-instructions',
      ...(durable ? [] : ['--no-sync']),
    ])
    await rename(password, path.join(making, passwordFile))
    await rename(making, dataDir)
  } catch (error) {
    await rm(making, { recursive: true, force: true })
    await rm(password, { force: true })
    throw error
  } finally {
    await passwordInput.close()
  }
}

function runInitdb(
  initdb: string,
  cwd: string,
  account: Account | undefined,
  stdin: number,
  args: string[],
): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(initdb, args, {
      cwd,
      env: serverEnvironment(),
      stdio: [stdin, 'ignore', 'pipe'],
      ...account,
    })
    let said = ''
    child.stderr?.on('data', chunk => {
      said += chunk
    })
    const fail = (cause: unknown) =>
      reject(
        new LighterError('embedded_postgres', `initdb failed in ${cwd}: ${said.trim() || cause}`, { cause }),
      )
    child.on('error', fail)
    child.on('close', (code, signal) =>
      code === 0 ? resolve() : fail(new Error(`it ended with ${code ?? signal}`)),
    )
  })
}

/** A directory that belongs to root was copied by root, from a backup say. */
async function giveAway(dataDir: string, account: Account): Promise<void> {
  await chown(dataDir, account.uid, account.gid)
  for (const entry of await readdir(dataDir, { recursive: true, withFileTypes: true })) {
    await lchown(path.join(entry.parentPath, entry.name), account.uid, account.gid)
  }
}
