// The Postgres and the S3 server of docker-compose.yml, each in a container for this run.
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { GenericContainer, Wait } from 'testcontainers'
import { openStore } from '../../../src/store/object-store.ts'
import type { BackendServers, TestPostgres } from './backend.ts'
import { interpolate, readCompose } from './compose-file.ts'

const postgresPort = 5432
const storePort = 8333
/** Pulling the images included. */
const startTimeoutMs = 300_000
const bucketTimeoutMs = 60_000

export async function startContainers(): Promise<BackendServers> {
  const [postgres, store] = await Promise.allSettled([startPostgresContainer(), startStore()])
  const stop = async () => {
    await Promise.all(
      [postgres, store].map(each => (each.status === 'fulfilled' ? each.value.stop() : undefined)),
    )
  }
  if (postgres.status === 'fulfilled' && store.status === 'fulfilled') {
    return { postgres: postgres.value, store: store.value, stop }
  }
  await stop()
  throw new AggregateError(
    [postgres, store].flatMap(each => (each.status === 'rejected' ? [each.reason] : [])),
    'TEST_BACKEND=containers: the containers did not start. Does a Docker daemon answer, and may it pull the images?',
  )
}

/** @param settings over those that the embedded server has too, see src/embedded/postgres.ts */
export async function startPostgresContainer(settings: Record<string, string> = {}): Promise<TestPostgres> {
  const superuserPassword = randomBytes(18).toString('hex')
  const all = { max_connections: '200', shared_buffers: '128MB', ...settings }
  const container = await service('postgres')
    .withCommand(['postgres', ...Object.entries(all).flatMap(([name, value]) => ['-c', `${name}=${value}`])])
    .withEnvironment({ POSTGRES_PASSWORD: superuserPassword })
    .withExposedPorts(postgresPort)
    // Over TCP: while the image initialises, its server listens on a socket only.
    .withWaitStrategy(Wait.forSuccessfulCommand('pg_isready --host=127.0.0.1 --username=postgres'))
    .start()
  return {
    url: ({ database = 'postgres', user = 'postgres', password = superuserPassword } = {}) =>
      `postgres://${user}:${encodeURIComponent(password)}@${container.getHost()}:${container.getMappedPort(postgresPort)}/${database}`,
    stop: async () => {
      await container.stop()
    },
  }
}

async function startStore(): Promise<BackendServers['store'] & { stop(): Promise<void> }> {
  const credentials = {
    accessKeyId: randomBytes(16).toString('hex'),
    secretAccessKey: randomBytes(32).toString('hex'),
  }
  const bucket = composeService('lighter').environment.R2_BUCKET ?? ''
  const container = await service('s3')
    .withEnvironment({
      AWS_ACCESS_KEY_ID: credentials.accessKeyId,
      AWS_SECRET_ACCESS_KEY: credentials.secretAccessKey,
    })
    .withExposedPorts(storePort)
    .withWaitStrategy(Wait.forHttp('/healthz', storePort))
    .start()
  const store = {
    ...credentials,
    // Other servers may not serve S3 at the root.
    endpoint: `http://${container.getHost()}:${container.getMappedPort(storePort)}${process.env.S3_ENDPOINT_PATH ?? ''}`,
    bucket,
  }
  await untilBucket(store).catch(async error => {
    await container.stop()
    throw error
  })
  return {
    ...store,
    stop: async () => {
      await container.stop()
    },
  }
}

function service(name: 'postgres' | 's3'): GenericContainer {
  const { image, command } = composeService(name)
  const container = new GenericContainer(interpolate(image, process.env)).withStartupTimeout(startTimeoutMs)
  return command === undefined ? container : container.withCommand(command)
}

function composeService(name: string) {
  const found = readCompose().services[name]
  if (found === undefined) throw new Error(`docker-compose.yml has no service ${name}`)
  return found
}

/** The server makes it once it is up, and goes on without it if that fails. */
async function untilBucket(config: BackendServers['store']): Promise<void> {
  const store = openStore({ ...config, prefix: '', concurrency: 1, timeoutMs: 5000 })
  try {
    for (const deadline = performance.now() + bucketTimeoutMs; ; await sleep(200)) {
      const error = await store.check().then(
        () => undefined,
        (failure: unknown) => failure,
      )
      if (error === undefined) return
      if (performance.now() > deadline) throw error
    }
  } finally {
    store.close()
  }
}
