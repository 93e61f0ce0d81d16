// The one place that reads the environment. Every variable with its default and the reason for it.

import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { validate as validateCron } from 'node-cron'
import { z } from 'zod'
import { ConfigError, type ConfigProblem } from './errors.ts'
import { bySweepVariable, type SweepName, sweepNames, sweepVariable } from './sweeps/names.ts'

const MiB = 1024 * 1024

/** What is hydrated becomes one string, and V8's longest has 2^29 - 24 characters. */
export const maxPayloadBytes = 500 * MiB

const urlExpected =
  'a URL such as postgresql://user:password@host:5432/database, special characters of the password as %23 and so on'
const url = z.string().refine(isPostgresUrl, urlExpected)
const integer = (min: number, max: number) => {
  const expected = `a whole number from ${min} to ${max}`
  return z
    .string()
    .trim()
    .regex(/^[+-]?\d+$/, expected)
    .transform(Number)
    .pipe(z.number().min(min, expected).max(max, expected))
}
const cron = (schedule: string) =>
  z
    .string()
    .refine(
      value => value === 'off' || validateCron(value),
      'a cron expression, in UTC, such as 17 3 * * *, or off',
    )
    .default(schedule)
const httpUrl = (example: string) =>
  z.url({ protocol: /^https?$/, error: `a URL such as ${example}` }).optional()
/** As OpenTelemetry has them: values percent-encoded. */
const pairs = z
  .string()
  .refine(value => pairsOf(value) !== null, 'name=value, several separated by commas, values percent-encoded')
const text = (expected: string) => z.string().min(1, expected)

/** As node-postgres parses it: without a host it is a socket or the default host. */
function isPostgresUrl(value: string): boolean {
  return (
    /^postgres(ql)?:\/\/./.test(value) && (URL.canParse(value) || URL.canParse(value.replace('@/', '@host/')))
  )
}

/**
 * The schema of the environment. `describe` texts are the reference that `.env.example` and the docs repeat.
 * The values of `secretVariables` are never printed, and may come from a file (`NAME_FILE`).
 */
export const environmentSchema = z.object({
  DATABASE_URL: url.describe(
    'Postgres as the daemon uses it: a login role that is a member of lighter_daemon',
  ),
  LISTEN_DATABASE_URL: url
    .optional()
    .describe('Direct connection for LISTEN where DATABASE_URL goes through a pooler; default DATABASE_URL'),
  ADMIN_DATABASE_URL: url
    .optional()
    .describe('Owner of the tables, for migrate, attach and detach; default DATABASE_URL'),
  DATABASE_POOL_SIZE: integer(2, 200)
    .default(10)
    .describe('Connections of the pool, beside the one that listens'),

  R2_ACCOUNT_ID: z
    .string()
    .regex(/^[A-Za-z0-9.-]+$/, 'the account id from the Cloudflare dashboard')
    .optional()
    .describe('Cloudflare account; needed unless R2_ENDPOINT is set'),
  R2_ACCESS_KEY_ID: text('an access key id').describe('S3 access key id'),
  R2_SECRET_ACCESS_KEY: text('a secret access key').describe('S3 secret access key'),
  R2_BUCKET: text('a bucket name').describe('Bucket; private'),
  R2_ENDPOINT: z
    .url({ protocol: /^https?$/, error: 'a URL such as https://s3.example.com' })
    .optional()
    .describe('S3 endpoint; default https://<R2_ACCOUNT_ID>.r2.cloudflarestorage.com'),
  R2_PREFIX: z
    .string()
    .regex(
      /^((?!(?:\.{1,2}|tenants)\/)[A-Za-z0-9_.-]+\/)*$/,
      'empty, or a path that ends with a slash, such as production/, without a part named tenants',
    )
    .default('')
    .describe('Prefix of every key, for a bucket shared with others'),

  AI_ARTIFACT_META_THRESHOLD_BYTES: integer(1024, 1_000_000_000)
    .default(8000)
    .describe('Phase 2 offloads metadata whose text is longer than this'),
  OFFLOAD_PACKING: z
    .enum(['on', 'off'])
    .default('on')
    .describe('off: one object per artifact, for readers that fetch r2_key by themselves'),
  OFFLOAD_CODEC: z
    .enum(['zstd', 'gzip', 'none'])
    .default('zstd')
    .describe('Compression of objects; none for readers that expect plain JSON'),
  OFFLOAD_BATCH_ROWS: integer(1, 10_000).default(2000).describe('Jobs claimed at once'),
  OFFLOAD_BATCH_BYTES: integer(64 * 1024, 1024 * MiB)
    .default(16 * MiB)
    .describe('Payload text of one batch in memory, in bytes; the rest waits for the next batch'),
  OFFLOAD_BATCHES_IN_FLIGHT: integer(1, 16)
    .default(3)
    .describe(
      'Batches worked on at once: one fetched while others upload. Under a backlog one more, of a quarter of the bytes',
    ),
  OFFLOAD_FAIR_LOOK_MS: integer(50, 1000)
    .default(500)
    .describe(
      'Under a backlog, how often the newest jobs are looked at, so that each tenant gets its turn; twice as often when there are several',
    ),
  OFFLOAD_MAX_ATTEMPTS: integer(1, 100)
    .default(8)
    .describe('Failed attempts before a job becomes a dead letter'),
  OFFLOAD_LEASE_MS: integer(1000, 3_600_000)
    .default(60_000)
    .describe('Visibility timeout of claimed jobs; extended while work goes on'),
  POLL_INTERVAL_MS: integer(100, 3_600_000)
    .default(2000)
    .describe('How often a sleeping daemon looks at the queue without being notified'),

  STREAM_THRESHOLD_BYTES: integer(64 * 1024, 256 * MiB)
    .default(4 * MiB)
    .describe('Payloads longer than this are streamed, never held whole'),
  MAX_PAYLOAD_BYTES: integer(MiB, maxPayloadBytes)
    .default(256 * MiB)
    .describe(
      'Longest payload, and longest sum of the payloads of one row. A row with more stays inline, as a dead letter: it could not be read back whole',
    ),
  STREAM_CONCURRENCY: integer(1, 16).default(2).describe('Large payloads streamed at once'),
  MULTIPART_PART_BYTES: integer(5 * MiB, 512 * MiB)
    .default(5 * MiB)
    .describe('Size of every multipart part but the last; R2 wants them equal, 5 MiB at least'),
  UPLOAD_CONCURRENCY: integer(1, 256).default(16).describe('Requests to the object store at once'),
  PACK_MAX_BYTES: integer(64 * 1024, 256 * MiB)
    .default(8 * MiB)
    .describe('Uncompressed text of one pack, at most'),
  PACK_TARGET_BYTES: integer(64 * 1024, 256 * MiB)
    .default(4 * MiB)
    .describe('Rows of one tenant and kind that wait leave when they have so much uncompressed text'),
  PACK_MIN_BYTES: integer(0, 256 * MiB)
    .default(64 * 1024)
    .describe(
      'With less than that they go on waiting even after max_wait: a PUT would cost more than it saves',
    ),
  STORE_TIMEOUT_MS: integer(1000, 600_000)
    .default(30_000)
    .describe('Longest silence of the object store within one request'),

  AUTH_MODE: z
    .enum(['jwt', 'service', 'dev'])
    .optional()
    .describe(
      'Who may call the HTTP API: holders of a JWT, of a service key, or (dev, on a loopback address) anybody; unset: only /healthz, /readyz and the check of the store are served',
    ),
  API_HOST: text('an address such as 127.0.0.1 or 0.0.0.0')
    .default('127.0.0.1')
    .describe('Address that the HTTP API listens on'),
  API_PORT: integer(0, 65_535).default(4001).describe('Port of the HTTP API; 0 takes any'),
  API_PUBLIC_URL: z
    .url({ protocol: /^https?$/, error: 'a URL such as https://artifacts.example.com' })
    .optional()
    .describe(
      'Where clients reach the API, for the signed URLs that it makes; default http://API_HOST:API_PORT',
    ),
  JWT_SECRET: z
    .string()
    .min(32, 'a secret of 32 characters or more')
    .optional()
    .describe('AUTH_MODE=jwt: secret of HS256 tokens (Supabase: the JWT secret of the project)'),
  JWT_JWKS_URL: z
    .url({ protocol: /^https?$/, error: 'a URL such as https://example.com/.well-known/jwks.json' })
    .optional()
    .describe(
      'AUTH_MODE=jwt: where the public keys are; they are cached, and fetched again for an unknown key id',
    ),
  JWT_JWKS_FILE: text('the path of a JWKS file')
    .optional()
    .describe('AUTH_MODE=jwt: a file with the public keys, read again when it changes'),
  JWT_ALGORITHMS: z
    .string()
    .regex(
      /^((HS|RS|PS|ES)(256|384|512)|EdDSA)(,((HS|RS|PS|ES)(256|384|512)|EdDSA))*$/,
      'such as RS256,ES256',
    )
    .optional()
    .describe('Signatures that are accepted; default HS256 with JWT_SECRET, else RS256,ES256,EdDSA'),
  JWT_ISSUER: text('an issuer').optional().describe('The only `iss` that is accepted; unset: any'),
  JWT_AUDIENCE: text('an audience')
    .optional()
    .describe('The `aud` that must be in the token; unset: any (Supabase: authenticated)'),
  JWT_TENANT_CLAIM: z
    .string()
    .regex(/^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$/, 'a claim such as tenant_id or app_metadata.tenant_id')
    .default('tenant_id')
    .describe(
      'Claim with the tenant, dots for what is nested (Supabase: app_metadata.tenant_id, never user_metadata)',
    ),
  API_TENANT_NAMESPACE: z
    .string()
    .regex(
      /^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$/,
      'the tenant_namespace of an attached table',
    )
    .transform(value => value.toLowerCase())
    .optional()
    .describe(
      'Set: tokens and x-tenant-id name tenants as the application does, within this namespace (lighter.sources.tenant_namespace); unset: by their uuid',
    ),
  SERVICE_API_KEY: z
    .string()
    .refine(
      value => value.split(',').every(key => /^[\x21-\x7e]{32,}$/.test(key.trim())),
      'a key of 32 characters or more, or several separated by commas',
    )
    .optional()
    .describe(
      'AUTH_MODE=service, and /metrics: the key of a trusted back end; several with commas, to rotate them',
    ),
  ARTIFACT_KINDS: z
    .string()
    .regex(/^[a-z][a-z0-9_]*(,[a-z][a-z0-9_]*)*$/, 'kinds in snake_case, separated by commas')
    .optional()
    .describe('Kinds that the API takes beside the documented ones'),
  API_BODY_LIMIT_BYTES: integer(1024, 64 * MiB)
    .default(8 * MiB)
    .describe('Longest JSON body; longer payloads go to /api/storage/artifacts/raw'),
  API_RAW_LIMIT_BYTES: integer(1024, 5 * 1024 * MiB)
    .default(256 * MiB)
    .describe('Longest raw upload'),
  API_HYDRATE_LIMIT_BYTES: integer(MiB, 512 * MiB)
    .default(32 * MiB)
    .describe('Payloads that one hydrate request may bring together; what is beyond is reported per item'),
  API_RATE_LIMIT: integer(0, 1_000_000)
    .default(1200)
    .describe('Requests a minute of one tenant, at one daemon; 0: no limit'),
  API_UPLOAD_CONCURRENCY: integer(1, 64)
    .default(8)
    .describe('Uploads at once, of one tenant half as many; some more wait, others are answered 503'),
  API_READ_CONCURRENCY: integer(2, 1000)
    .default(32)
    .describe('Payloads answered at once, of one tenant a quarter; hydrations an eighth'),
  API_MAX_CONNECTIONS: integer(10, 100_000).default(1000).describe('Connections to the HTTP API at once'),
  API_TRUST_PROXY: integer(0, 10)
    .default(0)
    .describe('Proxies in front that set X-Forwarded-For: whose word is taken for the address of a client'),
  API_REQUEST_TIMEOUT_MS: integer(1000, 3_600_000)
    .default(300_000)
    .describe('Longest time in which a request must have arrived whole'),
  API_CORS_ORIGINS: z
    .string()
    .regex(
      /^https?:\/\/[^\s,/]+(,https?:\/\/[^\s,/]+)*$/,
      'origins such as https://app.example.com, separated by commas',
    )
    .optional()
    .describe('Origins whose pages may call the API; unset: none'),

  DASHBOARD: z
    .enum(['on', 'off'])
    .default('on')
    .describe('The page at /dashboard, for holders of a service key; off: it is not served'),
  DASHBOARD_PAYLOADS: z
    .enum(['on', 'off'])
    .optional()
    .describe(
      'Whether the dashboard shows payloads; default on with AUTH_MODE service and dev, where whoever gets in may read them anyway, and off with jwt',
    ),

  ...bySweepVariable(sweep => cron(sweep.cron).describe(sweep.purpose)),
  SWEEP_BATCH_SIZE: integer(1, 1000)
    .default(500)
    .describe('Artifacts, frames of them, or objects that a sweep works on at once'),
  SWEEP_RATE: integer(1, 1_000_000)
    .default(2000)
    .describe('Artifacts a second that a sweep goes through at most'),
  SWEEP_GRACE_DAYS: integer(0, 3650)
    .default(7)
    .describe('How long after its deletion or expiry an artifact could still be brought back'),
  SWEEP_TOMBSTONE_DAYS: integer(1, 36_500)
    .default(90)
    .describe('How long a purged artifact is remembered, so that the API can say why it is gone'),
  SWEEP_READER_GRACE_MS: integer(1000, 86_400_000)
    .default(3_600_000)
    .describe(
      'How long an object stays at least after its artifacts have moved: longer than the longest read. SWEEP_GRACE_DAYS, if that is longer',
    ),
  SWEEP_COMPACT_LIVE_PERCENT: integer(1, 100)
    .default(50)
    .describe('Packs of whose bytes fewer are alive are rewritten'),
  SWEEP_ERASURE_DAYS: integer(1, 3650)
    .default(30)
    .describe('After so long a pack with any purged artifact is rewritten, whatever its share'),
  SWEEP_VERIFY_SAMPLE: integer(0, 1_000_000)
    .default(1000)
    .describe('Payloads that a scheduled verify sweep reads back'),

  METRICS_TENANTS: integer(0, 1000)
    .default(0)
    .describe('Tenants that have metrics of their own, the first that come; the others are one. 0: none has'),
  OTEL_EXPORTER_OTLP_ENDPOINT: httpUrl('http://127.0.0.1:4318').describe(
    'Collector that takes traces, as JSON over HTTP, at /v1/traces below this; unset: no traces',
  ),
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: httpUrl('http://127.0.0.1:4318/v1/traces').describe(
    'The same as a whole URL; goes before the other',
  ),
  OTEL_EXPORTER_OTLP_PROTOCOL: z
    .enum(['http/json'])
    .optional()
    .describe('Only JSON over HTTP is spoken, which collectors take on their HTTP port (4318)'),
  OTEL_EXPORTER_OTLP_HEADERS: pairs
    .optional()
    .describe('Headers for the collector, such as authorization=Bearer%20…'),
  OTEL_EXPORTER_OTLP_TIMEOUT: integer(100, 60_000)
    .default(10_000)
    .describe('How long the collector may take for a request, in ms'),
  OTEL_SERVICE_NAME: text('a name').default('pg-lighter').describe('Under which the traces appear'),
  OTEL_RESOURCE_ATTRIBUTES: pairs
    .optional()
    .describe('What else is said of this daemon, such as deployment.environment=production'),
  OTEL_TRACES_SAMPLER: z
    .enum([
      'always_on',
      'always_off',
      'traceidratio',
      'parentbased_always_on',
      'parentbased_always_off',
      'parentbased_traceidratio',
    ])
    .default('parentbased_always_on')
    .describe('Which traces are recorded'),
  OTEL_TRACES_SAMPLER_ARG: z
    .string()
    .regex(/^(0?\.\d+|[01](\.0+)?)$/, 'a share from 0 to 1')
    .transform(Number)
    .default(1)
    .describe('Share of the traces that are recorded, with traceidratio'),
  OTEL_BSP_MAX_QUEUE_SIZE: integer(1, 100_000)
    .default(2048)
    .describe('Spans that may wait for the collector; what comes beyond is dropped, and counted'),
  OTEL_BSP_SCHEDULE_DELAY: integer(10, 60_000).default(5000).describe('How often spans are sent, in ms'),
  OTEL_SDK_DISABLED: z.enum(['true', 'false']).default('false').describe('true: no traces all the same'),
  TRACES_TENANTS: z.enum(['on', 'off']).default('off').describe('on: spans name the tenant'),

  SHUTDOWN_TIMEOUT_MS: integer(0, 600_000)
    .default(25_000)
    .describe('How long SIGTERM waits for work in flight; below the 30 s that orchestrators give'),
  LOG_LEVEL: z
    .enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'])
    .default('info')
    .describe('Least severe level that is logged'),
})

export type Environment = z.infer<typeof environmentSchema>

/** Variables whose values are never shown. Connection strings hold passwords. */
export const secretVariables: readonly (keyof Environment)[] = [
  'DATABASE_URL',
  'LISTEN_DATABASE_URL',
  'ADMIN_DATABASE_URL',
  'R2_ACCESS_KEY_ID',
  'R2_SECRET_ACCESS_KEY',
  'JWT_SECRET',
  'SERVICE_API_KEY',
  'OTEL_EXPORTER_OTLP_HEADERS',
]

const isSecret = (variable: string) => secretVariables.some(secret => secret === variable)

interface StoreCredentials {
  accessKeyId: string
  secretAccessKey: string
}

export interface StoreConfig extends StoreCredentials {
  endpoint: string
  bucket: string
  prefix: string
  /** The present ones, where they may be renewed while we run. */
  renewed?: () => StoreCredentials
  concurrency: number
  timeoutMs: number
}

/** Which variables of the store are set (or their `_FILE`), and which of them are needed and are not. */
export interface StoreVariables {
  present: Record<string, boolean>
  missing: string[]
}

export type Codec = 'zstd' | 'gzip' | 'none'

export interface PackConfig {
  packing: boolean
  codec: Codec
  maxPackBytes: number
}

export interface OffloadConfig extends PackConfig {
  batchRows: number
  batchBytes: number
  batchesInFlight: number
  fairLookMs: number
  packTargetBytes: number
  packMinBytes: number
  maxAttempts: number
  leaseMs: number
  streamThresholdBytes: number
  maxPayloadBytes: number
  streamConcurrency: number
  partBytes: number
  uploadConcurrency: number
}

export interface SweepConfig {
  /** Cron expressions in UTC; null: not by itself. */
  schedules: Record<SweepName, string | null>
  batchSize: number
  /** Artifacts a second at most. */
  rate: number
  graceDays: number
  tombstoneDays: number
  readerGraceMs: number
  /**
   * How long an object that is on its way out is left alone at first: a database that finds out that a copy of it
   * has taken its place has this long to object.
   */
  deleteDelayMs: number
  /** After so long no request for an object can still be under way. */
  settleMs: number
  compactLiveShare: number
  erasureDays: number
  verifySample: number
}

/** Who may call, and how that is proved. */
export type AuthConfig =
  | { mode: 'off' | 'dev' }
  | { mode: 'service' }
  | {
      mode: 'jwt'
      key: { secret: string } | { jwksUrl: string } | { jwksFile: string }
      algorithms: string[]
      issuer: string | undefined
      audience: string | undefined
      tenantClaim: string[]
    }

export interface ApiConfig {
  host: string
  port: number
  publicUrl: string | undefined
  auth: AuthConfig
  /** Within it requests name tenants; undefined: by their uuids. */
  tenantNamespace: string | undefined
  serviceKeys: string[]
  kinds: string[]
  bodyLimitBytes: number
  rawLimitBytes: number
  hydrateLimitBytes: number
  /** Requests a minute of one tenant; 0: no limit. */
  rateLimit: number
  uploadConcurrency: number
  readConcurrency: number
  /** Requests to the store at once, of one hydration. */
  fetchConcurrency: number
  maxConnections: number
  /** Hops. */
  trustProxy: number
  requestTimeoutMs: number
  corsOrigins: string[]
  /** Null: not served. `payloads`: whether it may show them. */
  dashboard: { payloads: boolean } | null
}

export interface TracingConfig {
  /** That takes the spans. */
  url: string
  headers: Record<string, string> | null
  timeoutMs: number
  serviceName: string
  resource: Record<string, string>
  sampler: Environment['OTEL_TRACES_SAMPLER']
  samplerRatio: number
  queueSpans: number
  scheduleMs: number
  /** Whether spans name tenants. */
  tenants: boolean
}

export interface Config {
  databaseUrl: string
  listenDatabaseUrl: string
  adminDatabaseUrl: string
  /** The present ones, where one stands in a file: it may be renewed while we run. */
  renewed?: { databaseUrl: () => string; listenDatabaseUrl: () => string }
  poolSize: number
  store: StoreConfig
  storeVariables: StoreVariables
  offload: OffloadConfig
  api: ApiConfig
  sweeps: SweepConfig
  /** Tenants that have metrics of their own. */
  metricsTenants: number
  /** Null: no traces. */
  tracing: TracingConfig | null
  /** Undefined when the environment does not name it: then the one in the database stands. */
  thresholdBytes: number | undefined
  pollIntervalMs: number
  shutdownTimeoutMs: number
  logLevel: Environment['LOG_LEVEL']
}

/**
 * Reads and checks the whole configuration.
 * @param env variables as in `process.env`; `NAME_FILE` stands for the content of that file where NAME is a secret
 * @param options.storeOptional variables of the store may be missing: `storeVariables` says which, `store` is then of
 *   no use
 * @throws {ConfigError} naming every variable that is missing or malformed, never a secret's value
 */
export function loadConfig(
  env: Record<string, string | undefined>,
  options: { storeOptional?: boolean } = {},
): Config {
  const problems: ConfigProblem[] = []
  const values = readVariables(env, Object.keys(environmentSchema.shape), problems)
  const storeVariables = storeVariablesOf(env)
  if (options.storeOptional) for (const name of storeVariables.missing) values[name] = standIn()
  const parsed = environmentSchema.safeParse(values)
  if (!parsed.success) problems.push(...parsed.error.issues.map(issue => problemOf(issue, values)))
  if (values.R2_ENDPOINT === undefined && values.R2_ACCOUNT_ID === undefined) {
    problems.push({
      variable: 'R2_ACCOUNT_ID',
      found: 'nothing',
      expected: 'the account id, or R2_ENDPOINT for another S3 store',
    })
  }
  // By itself, so that what is wrong elsewhere does not hide what is wrong here.
  const access = accessSchema.safeParse(values)
  const auth = access.success ? authOf(access.data, env.NODE_ENV === 'production', problems) : undefined
  if (parsed.success && parsed.data.SWEEP_ERASURE_DAYS < parsed.data.SWEEP_GRACE_DAYS) {
    problems.push({
      variable: 'SWEEP_ERASURE_DAYS',
      found: String(parsed.data.SWEEP_ERASURE_DAYS),
      expected: `SWEEP_GRACE_DAYS (${parsed.data.SWEEP_GRACE_DAYS}) or more: a rewritten pack stays for that long`,
    })
  }
  if (!parsed.success || auth === undefined || problems.length > 0) throw new ConfigError(problems)
  const e = parsed.data
  const present = presentSecrets(env, values)
  return {
    databaseUrl: e.DATABASE_URL,
    listenDatabaseUrl: e.LISTEN_DATABASE_URL ?? e.DATABASE_URL,
    adminDatabaseUrl: e.ADMIN_DATABASE_URL ?? e.DATABASE_URL,
    ...(isInFile(env, 'DATABASE_URL', 'LISTEN_DATABASE_URL') && {
      renewed: {
        databaseUrl: present('DATABASE_URL'),
        listenDatabaseUrl: present(
          e.LISTEN_DATABASE_URL === undefined ? 'DATABASE_URL' : 'LISTEN_DATABASE_URL',
        ),
      },
    }),
    poolSize: e.DATABASE_POOL_SIZE,
    store: {
      endpoint: e.R2_ENDPOINT ?? `https://${e.R2_ACCOUNT_ID}.r2.cloudflarestorage.com`,
      bucket: e.R2_BUCKET,
      prefix: e.R2_PREFIX,
      accessKeyId: e.R2_ACCESS_KEY_ID,
      secretAccessKey: e.R2_SECRET_ACCESS_KEY,
      ...(isInFile(env, 'R2_ACCESS_KEY_ID', 'R2_SECRET_ACCESS_KEY') && {
        renewed: () => ({
          accessKeyId: present('R2_ACCESS_KEY_ID')(),
          secretAccessKey: present('R2_SECRET_ACCESS_KEY')(),
        }),
      }),
      concurrency: e.UPLOAD_CONCURRENCY,
      timeoutMs: e.STORE_TIMEOUT_MS,
    },
    storeVariables,
    offload: {
      packing: e.OFFLOAD_PACKING === 'on',
      codec: e.OFFLOAD_CODEC,
      maxPackBytes: e.PACK_MAX_BYTES,
      packTargetBytes: Math.min(e.PACK_TARGET_BYTES, e.PACK_MAX_BYTES),
      packMinBytes: Math.min(e.PACK_MIN_BYTES, e.PACK_TARGET_BYTES, e.PACK_MAX_BYTES),
      batchRows: e.OFFLOAD_BATCH_ROWS,
      batchBytes: Math.max(e.OFFLOAD_BATCH_BYTES, e.STREAM_THRESHOLD_BYTES),
      batchesInFlight: e.OFFLOAD_BATCHES_IN_FLIGHT,
      fairLookMs: e.OFFLOAD_FAIR_LOOK_MS,
      maxAttempts: e.OFFLOAD_MAX_ATTEMPTS,
      leaseMs: e.OFFLOAD_LEASE_MS,
      streamThresholdBytes: e.STREAM_THRESHOLD_BYTES,
      maxPayloadBytes: e.MAX_PAYLOAD_BYTES,
      streamConcurrency: e.STREAM_CONCURRENCY,
      partBytes: e.MULTIPART_PART_BYTES,
      uploadConcurrency: e.UPLOAD_CONCURRENCY,
    },
    api: {
      // One address: a second one would be a second server.
      host: e.API_HOST === 'localhost' ? '127.0.0.1' : e.API_HOST,
      port: e.API_PORT,
      publicUrl: e.API_PUBLIC_URL?.replace(/\/+$/, ''),
      auth,
      tenantNamespace: e.API_TENANT_NAMESPACE,
      serviceKeys: list(e.SERVICE_API_KEY),
      kinds: list(e.ARTIFACT_KINDS),
      bodyLimitBytes: e.API_BODY_LIMIT_BYTES,
      rawLimitBytes: e.API_RAW_LIMIT_BYTES,
      hydrateLimitBytes: e.API_HYDRATE_LIMIT_BYTES,
      rateLimit: e.API_RATE_LIMIT,
      uploadConcurrency: e.API_UPLOAD_CONCURRENCY,
      readConcurrency: e.API_READ_CONCURRENCY,
      fetchConcurrency: 8,
      maxConnections: e.API_MAX_CONNECTIONS,
      trustProxy: e.API_TRUST_PROXY,
      requestTimeoutMs: e.API_REQUEST_TIMEOUT_MS,
      corsOrigins: list(e.API_CORS_ORIGINS),
      dashboard:
        e.DASHBOARD === 'on'
          ? { payloads: (e.DASHBOARD_PAYLOADS ?? (auth.mode === 'jwt' ? 'off' : 'on')) === 'on' }
          : null,
    },
    sweeps: {
      schedules: Object.fromEntries(
        sweepNames.map(name => [name, scheduleOf(e[sweepVariable(name)])]),
      ) as SweepConfig['schedules'],
      batchSize: e.SWEEP_BATCH_SIZE,
      rate: e.SWEEP_RATE,
      graceDays: e.SWEEP_GRACE_DAYS,
      tombstoneDays: e.SWEEP_TOMBSTONE_DAYS,
      readerGraceMs: e.SWEEP_READER_GRACE_MS,
      deleteDelayMs: 2 * 3_600_000,
      // A request lasts four silences, and is tried four times (src/store/object-store.ts).
      settleMs: e.STORE_TIMEOUT_MS * 4 * 4 + 60_000,
      compactLiveShare: e.SWEEP_COMPACT_LIVE_PERCENT / 100,
      erasureDays: e.SWEEP_ERASURE_DAYS,
      verifySample: e.SWEEP_VERIFY_SAMPLE,
    },
    metricsTenants: e.METRICS_TENANTS,
    tracing: tracingOf(e),
    thresholdBytes:
      values.AI_ARTIFACT_META_THRESHOLD_BYTES === undefined ? undefined : e.AI_ARTIFACT_META_THRESHOLD_BYTES,
    pollIntervalMs: e.POLL_INTERVAL_MS,
    shutdownTimeoutMs: e.SHUTDOWN_TIMEOUT_MS,
    logLevel: e.LOG_LEVEL,
  }
}

const storeNames = [
  'R2_ACCOUNT_ID',
  'R2_ACCESS_KEY_ID',
  'R2_SECRET_ACCESS_KEY',
  'R2_BUCKET',
  'R2_ENDPOINT',
] as const

/** @param env as in process.env; only whether a variable is set is looked at */
export function storeVariablesOf(env: Record<string, string | undefined>): StoreVariables {
  const isSet = (name: string) => (env[name] ?? '') !== '' || (env[`${name}_FILE`] ?? '') !== ''
  // One of the two says where the store is.
  const isNeeded = (name: string) =>
    name !== 'R2_ENDPOINT' && !(name === 'R2_ACCOUNT_ID' && isSet('R2_ENDPOINT'))
  return {
    present: Object.fromEntries(storeNames.map(name => [name, isSet(name)])),
    missing: storeNames.filter(name => !isSet(name) && isNeeded(name)),
  }
}

/** For a variable that is missing. Nobody can guess it: keys are derived from the secret one. */
const standIn = () => randomBytes(32).toString('hex')

function tracingOf(e: Environment): TracingConfig | null {
  const base = e.OTEL_EXPORTER_OTLP_ENDPOINT
  const url =
    e.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT ??
    (base === undefined ? undefined : `${base.replace(/\/+$/, '')}/v1/traces`)
  if (url === undefined || e.OTEL_SDK_DISABLED === 'true') return null
  return {
    url,
    headers: pairsOf(e.OTEL_EXPORTER_OTLP_HEADERS ?? ''),
    timeoutMs: e.OTEL_EXPORTER_OTLP_TIMEOUT,
    serviceName: e.OTEL_SERVICE_NAME,
    resource: pairsOf(e.OTEL_RESOURCE_ATTRIBUTES ?? '') ?? {},
    sampler: e.OTEL_TRACES_SAMPLER,
    samplerRatio: e.OTEL_TRACES_SAMPLER_ARG,
    queueSpans: e.OTEL_BSP_MAX_QUEUE_SIZE,
    scheduleMs: e.OTEL_BSP_SCHEDULE_DELAY,
    tenants: e.TRACES_TENANTS === 'on',
  }
}

/** Null when it is not well-formed. */
function pairsOf(value: string): Record<string, string> | null {
  const parts = value.split(',').map(part => part.trim())
  const found: Record<string, string> = {}
  for (const part of parts.filter(each => each !== '')) {
    const [, name, encoded] = /^([^=\s]+)=(.*)$/.exec(part) ?? []
    if (name === undefined || encoded === undefined) return null
    try {
      found[name] = decodeURIComponent(encoded)
    } catch {
      return null
    }
  }
  return found
}

const scheduleOf = (value: string) => (value === 'off' ? null : value)

const list = (value: string | undefined) => value?.split(',').map(each => each.trim()) ?? []

const accessSchema = environmentSchema.pick({
  AUTH_MODE: true,
  API_HOST: true,
  SERVICE_API_KEY: true,
  JWT_SECRET: true,
  JWT_JWKS_URL: true,
  JWT_JWKS_FILE: true,
  JWT_ALGORITHMS: true,
  JWT_ISSUER: true,
  JWT_AUDIENCE: true,
  JWT_TENANT_CLAIM: true,
})

/** The chosen mode with all that it needs; what is missing, or unsafe, is a problem. */
function authOf(e: z.infer<typeof accessSchema>, production: boolean, problems: ConfigProblem[]): AuthConfig {
  const problem = (variable: string, found: string, expected: string) =>
    problems.push({ variable, found, expected })
  if (e.AUTH_MODE === 'dev') {
    // Whoever can connect is believed to be whichever tenant it says.
    if (production) problem('AUTH_MODE', 'dev, with NODE_ENV=production', 'jwt or service')
    if (!isLoopback(e.API_HOST))
      problem(
        'API_HOST',
        `${e.API_HOST}, with AUTH_MODE=dev`,
        'a loopback address, or AUTH_MODE jwt or service',
      )
    return { mode: 'dev' }
  }
  if (e.AUTH_MODE === 'service') {
    if (e.SERVICE_API_KEY === undefined)
      problem('SERVICE_API_KEY', 'nothing', 'a key of 32 characters or more, for AUTH_MODE=service')
    return { mode: 'service' }
  }
  if (e.AUTH_MODE === undefined) return { mode: 'off' }
  if (e.JWT_TENANT_CLAIM.split('.')[0] === 'user_metadata') {
    problem(
      'JWT_TENANT_CLAIM',
      e.JWT_TENANT_CLAIM,
      'a claim that users can not write, such as app_metadata.tenant_id',
    )
  }
  const keys = [
    ...(e.JWT_SECRET === undefined ? [] : [{ secret: e.JWT_SECRET }]),
    ...(e.JWT_JWKS_URL === undefined ? [] : [{ jwksUrl: e.JWT_JWKS_URL }]),
    ...(e.JWT_JWKS_FILE === undefined ? [] : [{ jwksFile: e.JWT_JWKS_FILE }]),
  ]
  const [key] = keys
  if (key === undefined || keys.length > 1) {
    problem(
      'JWT_SECRET',
      keys.length === 0 ? 'nothing' : 'more than one kind of key',
      'one of JWT_SECRET, JWT_JWKS_URL and JWT_JWKS_FILE, for AUTH_MODE=jwt',
    )
    return { mode: 'off' }
  }
  const isSymmetric = 'secret' in key
  const algorithms = e.JWT_ALGORITHMS?.split(',') ?? (isSymmetric ? ['HS256'] : ['RS256', 'ES256', 'EdDSA'])
  // A public key taken for a shared secret would let everybody sign.
  if (algorithms.some(name => name.startsWith('HS') !== isSymmetric)) {
    problem(
      'JWT_ALGORITHMS',
      algorithms.join(','),
      isSymmetric ? 'HS256, HS384 or HS512, with JWT_SECRET' : 'algorithms of public keys, with a JWKS',
    )
  }
  return {
    mode: 'jwt',
    key,
    algorithms,
    issuer: e.JWT_ISSUER,
    audience: e.JWT_AUDIENCE,
    tenantClaim: e.JWT_TENANT_CLAIM.split('.'),
  }
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127(\.\d{1,3}){3}$/.test(host)
}

/** The owner's connection, for commands that change the schema and never touch the bucket. */
export function loadAdminDatabaseUrl(env: Record<string, string | undefined>): string {
  const found = readDatabaseUrls(env)
  return found.ADMIN_DATABASE_URL ?? found.DATABASE_URL
}

/** The daemon's connection, for commands that work on the queue and never touch the bucket. */
export function loadDatabaseUrl(env: Record<string, string | undefined>): string {
  return readDatabaseUrls(env).DATABASE_URL
}

/** As `loadDatabaseUrl`, of a session: for what holds a lock. */
export function loadSessionUrl(env: Record<string, string | undefined>): string {
  const found = readDatabaseUrls(env)
  return found.LISTEN_DATABASE_URL ?? found.DATABASE_URL
}

function readDatabaseUrls(env: Record<string, string | undefined>) {
  const problems: ConfigProblem[] = []
  const needed = environmentSchema.pick({
    DATABASE_URL: true,
    ADMIN_DATABASE_URL: true,
    LISTEN_DATABASE_URL: true,
  })
  const values = readVariables(env, Object.keys(needed.shape), problems)
  // The owner's is enough for what the owner does.
  if (values.DATABASE_URL === undefined) values.DATABASE_URL = values.ADMIN_DATABASE_URL
  const parsed = needed.safeParse(values)
  if (!parsed.success) problems.push(...parsed.error.issues.map(issue => problemOf(issue, values)))
  if (!parsed.success || problems.length > 0) throw new ConfigError(problems)
  return parsed.data
}

/** Empty means unset; a secret may stand in a file, as container orchestrators mount them. */
function readVariables(
  env: Record<string, string | undefined>,
  names: string[],
  problems: ConfigProblem[],
): Record<string, string | undefined> {
  const values: Record<string, string | undefined> = {}
  for (const name of names) {
    const value = env[name]
    values[name] = value === '' ? undefined : value
    const file = env[`${name}_FILE`]
    if (!isSecret(name) || file === undefined || file === '') continue
    if (values[name] !== undefined) {
      problems.push({
        variable: `${name}_FILE`,
        found: `both ${name} and ${name}_FILE`,
        expected: 'one of them',
      })
      continue
    }
    const read = readSecret(file)
    if ('found' in read) {
      problems.push({
        variable: `${name}_FILE`,
        found: read.found,
        expected: 'the path of a file with the value',
      })
      // The variable itself is not also "missing": one problem, one line.
      values[name] = name.includes('URL') ? 'postgres://unreadable' : 'unreadable='.padEnd(32, '-')
    } else values[name] = read.value
  }
  return values
}

/** Whether any of them is. */
const isInFile = (env: Record<string, string | undefined>, ...names: string[]) =>
  names.some(name => (env[`${name}_FILE`] ?? '') !== '')

/** Of each secret what tells its present value: of one in a file that can not be read, or is no good, the last one. */
function presentSecrets(
  env: Record<string, string | undefined>,
  values: Record<string, string | undefined>,
): (name: keyof Environment) => () => string {
  return name => () => {
    const file = env[`${name}_FILE`] ?? ''
    const read = file === '' ? { found: 'no file' } : readSecret(file)
    if ('value' in read && environmentSchema.shape[name].safeParse(read.value).success)
      values[name] = read.value
    return values[name] ?? ''
  }
}

/** The path is not repeated in the problem: it may be the secret itself, put into the wrong variable. */
function readSecret(file: string): { value: string } | { found: string } {
  try {
    const value = readFileSync(file, 'utf8').trim()
    return value === '' ? { found: 'an empty file' } : { value }
  } catch (error) {
    const reason = error instanceof Error && 'code' in error ? String(error.code) : 'unknown reason'
    return { found: `a file that can not be read (${reason})` }
  }
}

function problemOf(issue: z.core.$ZodIssue, values: Record<string, string | undefined>): ConfigProblem {
  const variable = String(issue.path[0] ?? '?')
  const value = values[variable]
  const found =
    value === undefined
      ? 'nothing'
      : isSecret(variable)
        ? 'a value that is not valid (hidden)'
        : JSON.stringify(value)
  return { variable, found, expected: expectation(issue, variable) }
}

/** What a value of the variable must be, in the words of its refusal: nothing would be accepted that is not it. */
export function expectedOf(variable: keyof Environment): string {
  for (const wrong of ['', '\0']) {
    const parsed = environmentSchema.shape[variable].safeParse(wrong)
    if (!parsed.success && parsed.error.issues[0] !== undefined)
      return expectation(parsed.error.issues[0], variable)
  }
  return 'text'
}

function expectation(issue: z.core.$ZodIssue, variable: string): string {
  if (issue.code === 'invalid_value') return `one of ${issue.values.join(', ')}`
  if (issue.code === 'invalid_type') {
    if (variable.endsWith('DATABASE_URL')) return urlExpected
    return environmentSchema.shape[variable as keyof Environment]?.description ?? 'a value'
  }
  return issue.message
}
