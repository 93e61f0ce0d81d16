// No space left where Postgres keeps our tables.
import { execFile } from 'node:child_process'
import { chmod, mkdir, open, rm } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'
import { expect, onTestFinished, test } from 'vitest'
import { accountFor } from '../../src/embedded/account.ts'
import { messageOf } from '../../src/errors.ts'
import {
  asJsonbText,
  drained,
  hydratedMany,
  insertMessage,
  newConversation,
  startDaemon,
  until,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { environmentOnOwnServer, startOwnPostgres, temporaryDir } from '../support/own-server.ts'

const run = promisify(execFile)

/** A file system of so many MiB, that the server may write to; gone when the test is. Or why there is none. */
async function smallDisk(size: number): Promise<{ dir: string } | { reason: string }> {
  const parent = await temporaryDir('disk')
  // The server runs as another user where we are root.
  await chmod(parent, 0o755)
  const dir = path.join(parent, 'small')
  await mkdir(dir)
  try {
    const { uid, gid } = (await accountFor(dir)) ?? { uid: process.getuid?.(), gid: process.getgid?.() }
    await run('mount', ['-t', 'tmpfs', '-o', `size=${size}m,uid=${uid},gid=${gid},mode=700`, 'tmpfs', dir])
  } catch (error) {
    return { reason: `a tmpfs can not be mounted here, only root may: ${messageOf(error).split('\n')[0]}` }
  }
  onTestFinished(async () => void (await run('umount', ['--lazy', dir])))
  return { dir }
}

/** Takes all the space that is left. */
async function fill(file: string): Promise<void> {
  const handle = await open(file, 'a')
  try {
    for (const piece of [1 << 20, 4096]) {
      const zeros = Buffer.alloc(piece)
      while (
        await handle.appendFile(zeros).then(
          () => true,
          () => false,
        )
      );
    }
  } finally {
    await handle.close()
  }
}

test('a full disk costs no row an attempt; work goes on when there is space again', async context => {
  const disk = await smallDisk(16)
  if ('reason' in disk) {
    process.stderr.write(`disk-full.test.ts is skipped: ${disk.reason}\n`)
    return context.skip(disk.reason)
  }
  const { environment } = await environmentOnOwnServer(await startOwnPostgres())
  onTestFinished(() => environment.close())
  await environment.admin.query(`create tablespace small location '${disk.dir}'`)
  await environment.admin.query('alter table lighter.frames set tablespace small')
  const lines: Record<string, unknown>[] = []
  const daemon = await startDaemon(environment, {
    env: { OFFLOAD_MAX_ATTEMPTS: '1', OFFLOAD_BATCH_ROWS: '50' },
    log: line => lines.push(line),
  })
  onTestFinished(() => daemon.stop(0).then(() => undefined))
  const { conversationId } = await newConversation(environment)
  const written = new Map<string, string>()
  const write = async (rows: number) => {
    for (let n = 0; n < rows; n++) {
      const metadata = `{"tool_interactions": [${written.size}]}`
      written.set(await insertMessage(environment, conversationId, metadata), metadata)
    }
  }
  await write(20)
  await drained(environment)

  const ballast = path.join(disk.dir, 'ballast')
  await fill(ballast)
  // Pages that are there take some more.
  await write(300)
  await until(
    () => JSON.stringify(lines).includes('No space left on device'),
    'there is no space left',
    60_000,
  )
  const { rows: failed } = await environment.admin.query('select * from lighter.failed_jobs')
  expect(failed).toEqual([])
  await rm(ballast)

  await drained(environment, 60_000)
  expect(await daemon.stop(), 'the same daemon all along').toBe(true)
  const wanted = await Promise.all([...written.values()].map(text => asJsonbText(environment, text)))
  expect(await hydratedMany(environment, [...written.keys()])).toEqual(wanted)
  expect((await environment.admin.query('select * from lighter.failed_jobs')).rows).toEqual([])
  expect(await strayArtifacts(environment)).toEqual([])
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
}, 180_000)
