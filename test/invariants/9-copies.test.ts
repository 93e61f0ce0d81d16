// Invariant 9: a copy of the database never writes among, overwrites or deletes what belongs to the original.
import { afterEach, beforeEach, expect, test } from 'vitest'
import { adoptOwnership, claimOwnership } from '../../src/store/ownership.ts'
import { createEnvironment, startDaemon, type TestEnvironment } from '../support/environment.ts'

let original: TestEnvironment
let other: TestEnvironment
beforeEach(async () => {
  original = await createEnvironment()
  other = await createEnvironment()
})
afterEach(async () => {
  await original.close()
  await other.close()
})

const ownPrefix = () => ({ R2_PREFIX: original.env.R2_PREFIX ?? '' })

test('another installation refuses to start on the same prefix, and says what to do', async () => {
  const daemon = await startDaemon(original)
  await daemon.stop()
  await expect(startDaemon(other, { env: ownPrefix() })).rejects.toMatchObject({
    code: 'foreign_prefix',
    hint: expect.stringContaining('lighter adopt'),
  })
})

test('two daemons of one installation start at once on an unclaimed prefix', async () => {
  const daemons = await Promise.all(Array.from({ length: 4 }, () => startDaemon(original)))
  for (const daemon of daemons) await daemon.stop()
  const { rows } = await original.admin.query(
    'select owner_epoch::int as epoch, owner_etag is not null as known from lighter.installation',
  )
  expect(rows).toEqual([{ epoch: 0, known: true }])
})

test('a copy of the database, made by dump or as a template, refuses to start, and its original goes on', async () => {
  await claimOwnership(original.worker, original.store)
  const { rows } = await original.admin.query<{ id: string; epoch: string; etag: string }>(
    'select id, owner_epoch as epoch, owner_etag as etag from lighter.installation',
  )
  const memory = rows[0]
  await other.admin.query('update lighter.installation set id = $1, owner_epoch = $2, owner_etag = $3', [
    memory?.id,
    memory?.epoch,
    memory?.etag,
  ])
  await expect(startDaemon(other, { env: ownPrefix() })).rejects.toMatchObject({
    code: 'copied_database',
    hint: expect.stringContaining('R2_PREFIX'),
  })
  const daemon = await startDaemon(original)
  await daemon.stop()
  // The original after a move, or an upgrade.
  await adoptOwnership(other.worker, original.store)
  const moved = await startDaemon(other, { env: ownPrefix() })
  await moved.stop()
})

test('after adoption the former owner, and a physical copy of it, refuse to start', async () => {
  await claimOwnership(original.worker, original.store)
  // A physical copy has the same id and the same memory of the epoch.
  const { rows } = await original.admin.query<{ id: string; epoch: string; etag: string }>(
    'select id, owner_epoch as epoch, owner_etag as etag from lighter.installation',
  )
  const memory = rows[0]
  await other.admin.query('update lighter.installation set id = $1, owner_epoch = $2, owner_etag = $3', [
    memory?.id,
    memory?.epoch,
    memory?.etag,
  ])
  const adopted = await adoptOwnership(other.worker, original.store)
  expect(adopted).toEqual({ previous: memory?.id, epoch: 1 })
  await expect(startDaemon(original)).rejects.toMatchObject({ code: 'stale_copy' })
  const daemon = await startDaemon(other, { env: ownPrefix() })
  await daemon.stop()
})

test('a damaged owner object stops the start', async () => {
  await original.store.put(`${original.store.prefix}pg-lighter-owner.json`, Buffer.from('{}'), {
    contentType: 'application/json',
  })
  await expect(startDaemon(original)).rejects.toMatchObject({ code: 'owner_object_damaged' })
})
