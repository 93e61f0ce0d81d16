// Whether a store keeps the conditions of a PUT. Some take them and pay no heed, or look first and write later: there two
// daemons both become the owner of a prefix, and a copy of a database deletes what is the original's.
import { LighterError, messageOf } from '../errors.ts'
import { newArtifactId } from '../ids.ts'
import type { ObjectStore } from '../store/object-store.ts'
import type { Check } from './checks.ts'

/** R2 lets one key be written once a second, and the client tries again what it refuses. */
const writers = 4

/** Leaves nothing behind. */
export async function checkConditionalPuts(store: ObjectStore): Promise<Check> {
  const name = 'bucket conditions'
  try {
    const { created, replaced } = await raceConditionalPuts(store)
    if (created === 1 && replaced === 1) {
      return { name, status: 'ok', found: `of ${writers} conditional writes at once one is made` }
    }
    const found = `of ${writers} conditional writes at once ${created} made the object, ${replaced} replaced it`
    if (created <= 1 && replaced <= 1) {
      const advice = 'Run it again: a slow or throttled store may refuse all of them once.'
      return { name, status: 'warn', found, advice }
    }
    const advice =
      "Do not use this store: a copy of the database could delete the original's objects. Is there a newer version of it?"
    return { name, status: 'fail', found, advice }
  } catch (error) {
    const advice = (error instanceof LighterError && error.hint) || 'See the message.'
    return { name, status: 'fail', found: messageOf(error), advice }
  }
}

/** How many writers, all at once, made an object that was not to be there, and how many replaced that of one ETag. */
async function raceConditionalPuts(store: ObjectStore): Promise<{ created: number; replaced: number }> {
  const key = `${store.prefix}pg-lighter-doctor/${newArtifactId()}`
  const headers = { contentType: 'text/plain' }
  // Each with a body of its own: two alike would have one ETag.
  const race = async (round: string, condition: string | null) => {
    const puts = Array.from({ length: writers }, (_, i) =>
      store.put(key, Buffer.from(`lighter doctor ${round} ${i}\n`), headers, condition),
    )
    return (await Promise.allSettled(puts)).filter(put => put.status === 'fulfilled').length
  }
  try {
    const created = await race('creates', null)
    const { etag } = await store.put(key, Buffer.from('lighter doctor\n'), headers)
    return { created, replaced: await race('replaces', etag) }
  } finally {
    // No table knows of this object, so no sweep would ever remove it.
    await store.delete([key])
  }
}
