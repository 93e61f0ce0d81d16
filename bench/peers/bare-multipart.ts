// A bare multipart upload of so many bytes, made as they go: in parts of the same size, two at once, no Postgres.
import { loadConfig } from '../../src/config.ts'
import { openRawS3 } from '../../test/support/raw-s3.ts'
import { runContestant } from '../support/contestant.ts'

const total = Number(process.env.BENCH_BYTES)
const config = loadConfig(process.env)
const store = openRawS3(config.store)
const finished = Promise.withResolvers<void>()

async function upload(): Promise<void> {
  const key = `${config.store.prefix}bare/${total}`
  const uploadId = await store.createMultipart(key)
  const part = Buffer.alloc(config.offload.partBytes, 'bare multipart upload ')
  const count = Math.ceil(total / part.length)
  const etags: (string | undefined)[] = []
  let next = 0
  const sender = async () => {
    while (next < count) {
      const index = next++
      const bytes = index === count - 1 ? part.subarray(0, total - index * part.length) : part
      etags[index] = await store.uploadPart(key, uploadId, index + 1, bytes)
    }
  }
  await Promise.all([sender(), sender()])
  await store.completeMultipart(key, uploadId, etags)
}

await runContestant({
  start: async () => undefined,
  enqueue: async () => {
    void upload().then(() => finished.resolve())
  },
  done: finished.promise,
  stop: async () => store.close(),
  puts: () => 0,
})
