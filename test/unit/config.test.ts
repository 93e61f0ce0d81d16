import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { parseEnv } from 'node:util'
import { afterAll, describe, expect, test } from 'vitest'
import {
  environmentSchema,
  loadAdminDatabaseUrl,
  loadConfig,
  loadDatabaseUrl,
  secretVariables,
} from '../../src/config.ts'
import { ConfigError, type ConfigProblem } from '../../src/errors.ts'

type Variables = Record<string, string | undefined>

/** Enough to run, and nothing more. */
const complete = {
  DATABASE_URL: 'postgresql://worker:correct-horse@db.example.com:5432/app',
  R2_ACCOUNT_ID: '0123456789abcdef0123456789abcdef',
  R2_ACCESS_KEY_ID: 'AKIDbattery',
  R2_SECRET_ACCESS_KEY: 'staple/staple+staple=',
  R2_BUCKET: 'artifacts',
}

const dir = mkdtempSync(path.join(tmpdir(), 'pg-lighter-config-'))
afterAll(() => rmSync(dir, { recursive: true }))

function fileWith(name: string, content: string): string {
  const file = path.join(dir, name)
  writeFileSync(file, content)
  return file
}

function configErrorOf(work: () => unknown): ConfigError {
  try {
    work()
  } catch (error) {
    if (error instanceof ConfigError) return error
    throw error
  }
  throw new Error('the configuration was accepted')
}

const problemsOf = (env: Variables): ConfigProblem[] => configErrorOf(() => loadConfig(env)).problems

describe('problems', () => {
  test('all are reported at once: which variable, what was found, what is expected', () => {
    const error = configErrorOf(() =>
      loadConfig({
        R2_ACCESS_KEY_ID: 'k',
        R2_SECRET_ACCESS_KEY: 's',
        R2_BUCKET: 'b',
        DATABASE_POOL_SIZE: 'many',
        OFFLOAD_CODEC: 'brotli',
        R2_PREFIX: 'production',
        LOG_LEVEL: 'loud',
      }),
    )
    expect(error.problems).toEqual([
      {
        variable: 'DATABASE_URL',
        found: 'nothing',
        expected: expect.stringContaining('postgresql://user:password@host:5432/database'),
      },
      { variable: 'DATABASE_POOL_SIZE', found: '"many"', expected: 'a whole number from 2 to 200' },
      {
        variable: 'R2_PREFIX',
        found: '"production"',
        expected: expect.stringContaining('ends with a slash'),
      },
      { variable: 'OFFLOAD_CODEC', found: '"brotli"', expected: 'one of zstd, gzip, none' },
      {
        variable: 'LOG_LEVEL',
        found: '"loud"',
        expected: 'one of trace, debug, info, warn, error, fatal, silent',
      },
      {
        variable: 'R2_ACCOUNT_ID',
        found: 'nothing',
        expected: 'the account id, or R2_ENDPOINT for another S3 store',
      },
    ])
    const lines = error.message.split('\n')
    expect(lines[0]).toBe('6 problem(s) in the configuration')
    expect(lines).toHaveLength(7)
    for (const [i, p] of error.problems.entries())
      expect(lines[i + 1]).toBe(`  ${p.variable}: found ${p.found}, expected ${p.expected}`)
    expect(error.hint).toContain('.env.example')
  })

  test('an empty environment names each variable that must be set, and no other', () => {
    expect(problemsOf({}).map(p => p.variable)).toEqual([
      'DATABASE_URL',
      'R2_ACCESS_KEY_ID',
      'R2_SECRET_ACCESS_KEY',
      'R2_BUCKET',
      'R2_ACCOUNT_ID',
    ])
  })

  test.each([
    ['DATABASE_POOL_SIZE', '1', 'a whole number from 2 to 200'],
    ['DATABASE_POOL_SIZE', '201', 'a whole number from 2 to 200'],
    ['AI_ARTIFACT_META_THRESHOLD_BYTES', '1023', 'a whole number from 1024 to 1000000000'],
    ['MULTIPART_PART_BYTES', '5242879', 'a whole number from 5242880 to 536870912'],
    ['POLL_INTERVAL_MS', '99999999999999999999', 'a whole number from 100 to 3600000'],
    ['PACK_MIN_BYTES', '-1', 'a whole number from 0 to 268435456'],
    ['PACK_MIN_BYTES', '1.5', 'a whole number from 0 to 268435456'],
    ['PACK_MIN_BYTES', ' ', 'a whole number from 0 to 268435456'],
    ['PACK_MIN_BYTES', '10ms', 'a whole number from 0 to 268435456'],
    ['UPLOAD_CONCURRENCY', '0x10', 'a whole number from 1 to 256'],
    ['OFFLOAD_BATCH_ROWS', '1e3', 'a whole number from 1 to 10000'],
  ])('%s=%s is refused with the range', (variable, value, expected) => {
    expect(problemsOf({ ...complete, [variable]: value })).toEqual([
      { variable, found: JSON.stringify(value), expected },
    ])
  })

  test.each(['production', '/', '/production/', 'a//b/', '../', 'a/../b/', './', 'a b/', 'ä/'])(
    'the prefix "%s" is refused',
    prefix => {
      expect(problemsOf({ ...complete, R2_PREFIX: prefix })).toMatchObject([
        { variable: 'R2_PREFIX', found: JSON.stringify(prefix) },
      ])
    },
  )

  test.each(['production/', 'a/b.c/d_e-f/', '.../', '..a/'])('the prefix "%s" is taken', prefix => {
    expect(loadConfig({ ...complete, R2_PREFIX: prefix }).store.prefix).toBe(prefix)
  })

  test.each([
    'mysql://user:pw@host/db',
    'host=localhost dbname=app',
    'postgresql://',
    // As pasted, with the special characters of its password as they are.
    'postgresql://user:pass#word@host:5432/db',
    'postgresql://user:pass/word@host:5432/db',
    'postgresql://user@host:port/db',
  ])('the connection string %s is refused before anything connects', connectionString => {
    for (const variable of ['DATABASE_URL', 'LISTEN_DATABASE_URL', 'ADMIN_DATABASE_URL'])
      expect(problemsOf({ ...complete, [variable]: connectionString })).toMatchObject([{ variable }])
  })

  test.each([
    'postgres://user@host/db',
    'postgresql://user:p%23w@host:6543/db?sslmode=require',
    'postgresql://user:pw@/db?host=/var/run/postgresql',
    'postgresql:///db',
  ])('the connection string %s is taken', connectionString => {
    expect(loadConfig({ ...complete, DATABASE_URL: connectionString }).databaseUrl).toBe(connectionString)
  })

  test('an endpoint must be a URL of http or https', () => {
    for (const R2_ENDPOINT of ['s3.example.com', 'ftp://s3.example.com', 'https//s3'])
      expect(problemsOf({ ...complete, R2_ENDPOINT })).toEqual([
        {
          variable: 'R2_ENDPOINT',
          found: JSON.stringify(R2_ENDPOINT),
          expected: 'a URL such as https://s3.example.com',
        },
      ])
  })
})

describe('secrets', () => {
  // Each has a value that is refused, so that a message about it is made.
  const refused: Variables = {
    ...complete,
    DATABASE_URL: 'postgresql://Xuser7:Xpass#word7@Xhost7.example.com/Xdb7',
    LISTEN_DATABASE_URL: 'mysql://Xuser7:Xpassword7@Xhost7.example.com/Xdb7',
    ADMIN_DATABASE_URL: 'Xuser7:Xpassword7',
    R2_ACCESS_KEY_ID: 'Xkey7',
    R2_SECRET_ACCESS_KEY: 'Xsecret7',
    JWT_SECRET: 'Xjwt7',
    SERVICE_API_KEY: 'Xservice7',
    OTEL_EXPORTER_OTLP_HEADERS: 'Xheader7',
    LOG_LEVEL: 'wrong',
  }
  const printed = (error: ConfigError) =>
    [error.message, error.hint, error.stack, JSON.stringify(error), JSON.stringify(error.problems)].join('\n')

  test('are never printed, neither whole nor in part', () => {
    const error = configErrorOf(() => loadConfig(refused))
    expect(error.problems.map(p => p.variable)).toEqual([
      'DATABASE_URL',
      'LISTEN_DATABASE_URL',
      'ADMIN_DATABASE_URL',
      'JWT_SECRET',
      'SERVICE_API_KEY',
      'OTEL_EXPORTER_OTLP_HEADERS',
      'LOG_LEVEL',
    ])
    expect(printed(error)).not.toMatch(/X\w*7|#word/)
    expect(printed(configErrorOf(() => loadAdminDatabaseUrl(refused)))).not.toMatch(/X\w*7|#word/)
    expect(printed(configErrorOf(() => loadDatabaseUrl(refused)))).not.toMatch(/X\w*7|#word/)
  })

  test('are not printed when one was put where a file name belongs', () => {
    for (const name of secretVariables) {
      const error = configErrorOf(() =>
        loadConfig({ ...complete, [name]: undefined, [`${name}_FILE`]: 'postgresql://u:Xpw7@h/d' }),
      )
      expect(error.problems).toEqual([
        {
          variable: `${name}_FILE`,
          found: 'a file that can not be read (ENOENT)',
          expected: 'the path of a file with the value',
        },
      ])
      expect(printed(error)).not.toContain('Xpw7')
    }
  })

  test('are the connection strings and the keys', () => {
    expect(secretVariables).toEqual(
      Object.keys(environmentSchema.shape).filter(name =>
        /DATABASE_URL$|ACCESS_KEY|SECRET$|API_KEY$|HEADERS$/.test(name),
      ),
    )
  })
})

describe('NAME_FILE', () => {
  // Long enough for each of them, and without a space.
  const sampleOf = (name: string) =>
    name.endsWith('URL') ? `postgresql://u:pw@h/${name}` : `a-key=of-some-length-for-${name}`
  const found = (env: Variables) => {
    const hasSecret = [env.JWT_SECRET, env.JWT_SECRET_FILE].some(value => value !== undefined)
    const config = loadConfig({
      ...env,
      ...(hasSecret && { AUTH_MODE: 'jwt' }),
      OTEL_EXPORTER_OTLP_ENDPOINT: 'http://h:4318',
    })
    const { auth, serviceKeys } = config.api
    return {
      DATABASE_URL: config.databaseUrl,
      LISTEN_DATABASE_URL: config.listenDatabaseUrl,
      ADMIN_DATABASE_URL: config.adminDatabaseUrl,
      R2_ACCESS_KEY_ID: config.store.accessKeyId,
      R2_SECRET_ACCESS_KEY: config.store.secretAccessKey,
      JWT_SECRET: auth.mode === 'jwt' && 'secret' in auth.key ? auth.key.secret : '',
      SERVICE_API_KEY: serviceKeys.join(),
      OTEL_EXPORTER_OTLP_HEADERS: Object.entries(config.tracing?.headers ?? {})
        .map(([header, value]) => `${header}=${value}`)
        .join(),
    } as Record<string, string>
  }

  test.each(secretVariables)('%s may stand in a file, with a newline at its end', name => {
    const file = fileWith(name, `${sampleOf(name)}\n`)
    expect(found({ ...complete, [name]: undefined, [`${name}_FILE`]: file })[name]).toBe(sampleOf(name))
    const windows = fileWith(`${name}.crlf`, `${sampleOf(name)}\r\n`)
    expect(found({ ...complete, [name]: undefined, [`${name}_FILE`]: windows })[name]).toBe(sampleOf(name))
  })

  test.each(secretVariables)('%s in both ways is one problem, not a silent choice', name => {
    const file = fileWith(name, sampleOf(name))
    expect(problemsOf({ ...complete, [name]: sampleOf(name), [`${name}_FILE`]: file })).toEqual([
      { variable: `${name}_FILE`, found: `both ${name} and ${name}_FILE`, expected: 'one of them' },
    ])
  })

  test.each(secretVariables)('%s from a file that can not be read, or is empty, is one problem', name => {
    const withFile = (file: string) => problemsOf({ ...complete, [name]: undefined, [`${name}_FILE`]: file })
    expect(withFile(dir)).toMatchObject([
      { variable: `${name}_FILE`, found: 'a file that can not be read (EISDIR)' },
    ])
    expect(withFile(fileWith('blank', '\n'))).toMatchObject([
      { variable: `${name}_FILE`, found: 'an empty file' },
    ])
  })

  test('an empty NAME_FILE counts as unset, and a name that is no secret has no file', () => {
    expect(loadConfig({ ...complete, DATABASE_URL_FILE: '' }).databaseUrl).toBe(complete.DATABASE_URL)
    const file = fileWith('bucket', 'from-file')
    expect(loadConfig({ ...complete, R2_BUCKET_FILE: file }).store.bucket).toBe('artifacts')
  })

  test('in a file are read again when they are asked for; what is no good leaves the last ones standing', () => {
    const { DATABASE_URL, R2_ACCESS_KEY_ID, ...rest } = complete
    const url = fileWith('renewed-url', DATABASE_URL)
    const id = fileWith('renewed-id', R2_ACCESS_KEY_ID)
    const config = loadConfig({ ...rest, DATABASE_URL_FILE: url, R2_ACCESS_KEY_ID_FILE: id })
    expect(config.renewed?.databaseUrl()).toBe(DATABASE_URL)
    writeFileSync(url, 'postgresql://other:word@db/app\n')
    writeFileSync(id, 'other-id')
    expect(config.renewed?.databaseUrl()).toBe('postgresql://other:word@db/app')
    expect(config.renewed?.listenDatabaseUrl()).toBe('postgresql://other:word@db/app')
    expect(config.store.renewed?.()).toEqual({
      accessKeyId: 'other-id',
      secretAccessKey: complete.R2_SECRET_ACCESS_KEY,
    })
    writeFileSync(url, 'postgres')
    rmSync(id)
    expect(config.renewed?.databaseUrl()).toBe('postgresql://other:word@db/app')
    expect(config.store.renewed?.().accessKeyId).toBe('other-id')
  })

  test('the commands that need only the database take it from a file too', () => {
    const file = fileWith('admin', 'postgresql://owner@h/db\n')
    expect(loadAdminDatabaseUrl({ ADMIN_DATABASE_URL_FILE: file })).toBe('postgresql://owner@h/db')
    expect(loadDatabaseUrl({ DATABASE_URL_FILE: file })).toBe('postgresql://owner@h/db')
  })
})

describe('values', () => {
  test('have the documented defaults', () => {
    expect(loadConfig(complete)).toEqual({
      databaseUrl: complete.DATABASE_URL,
      listenDatabaseUrl: complete.DATABASE_URL,
      adminDatabaseUrl: complete.DATABASE_URL,
      poolSize: 10,
      store: {
        endpoint: 'https://0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com',
        bucket: 'artifacts',
        prefix: '',
        accessKeyId: complete.R2_ACCESS_KEY_ID,
        secretAccessKey: complete.R2_SECRET_ACCESS_KEY,
        concurrency: 16,
        timeoutMs: 30_000,
      },
      storeVariables: {
        present: {
          R2_ACCOUNT_ID: true,
          R2_ACCESS_KEY_ID: true,
          R2_SECRET_ACCESS_KEY: true,
          R2_BUCKET: true,
          R2_ENDPOINT: false,
        },
        missing: [],
      },
      offload: {
        packing: true,
        codec: 'zstd',
        maxPackBytes: 8 * 1024 ** 2,
        packTargetBytes: 4 * 1024 ** 2,
        packMinBytes: 64 * 1024,
        batchRows: 2000,
        batchBytes: 16 * 1024 ** 2,
        batchesInFlight: 3,
        fairLookMs: 500,
        maxAttempts: 8,
        leaseMs: 60_000,
        streamThresholdBytes: 4 * 1024 ** 2,
        maxPayloadBytes: 256 * 1024 ** 2,
        streamConcurrency: 2,
        partBytes: 5 * 1024 ** 2,
        uploadConcurrency: 16,
      },
      api: {
        host: '127.0.0.1',
        port: 4001,
        publicUrl: undefined,
        auth: { mode: 'off' },
        tenantNamespace: undefined,
        serviceKeys: [],
        kinds: [],
        bodyLimitBytes: 8 * 1024 ** 2,
        rawLimitBytes: 256 * 1024 ** 2,
        hydrateLimitBytes: 32 * 1024 ** 2,
        rateLimit: 1200,
        uploadConcurrency: 8,
        readConcurrency: 32,
        fetchConcurrency: 8,
        maxConnections: 1000,
        trustProxy: 0,
        requestTimeoutMs: 300_000,
        corsOrigins: [],
        dashboard: { payloads: true },
      },
      sweeps: {
        schedules: {
          orphans: '*/10 * * * *',
          retention: '17 3 * * *',
          release: '37 4 * * 6',
          compaction: '47 * * * *',
          verify: '7 5 * * *',
          rollup: '*/15 * * * *',
          scan: '*/5 * * * *',
          vacuum: '27 2 * * *',
        },
        batchSize: 500,
        rate: 2000,
        graceDays: 7,
        tombstoneDays: 90,
        readerGraceMs: 3_600_000,
        settleMs: 540_000,
        compactLiveShare: 0.5,
        deleteDelayMs: 7_200_000,
        erasureDays: 30,
        verifySample: 1000,
      },
      metricsTenants: 0,
      tracing: null,
      thresholdBytes: undefined,
      pollIntervalMs: 2000,
      shutdownTimeoutMs: 25_000,
      logLevel: 'info',
    })
  })

  test('an empty variable counts as unset', () => {
    const empty = Object.fromEntries(Object.keys(environmentSchema.shape).map(name => [name, '']))
    expect(loadConfig({ ...empty, ...complete })).toEqual(loadConfig(complete))
    expect(problemsOf({ ...complete, R2_BUCKET: '' })).toMatchObject([
      { variable: 'R2_BUCKET', found: 'nothing' },
    ])
  })

  test('R2_ENDPOINT does instead of R2_ACCOUNT_ID, and wins over it', () => {
    const { R2_ACCOUNT_ID, ...rest } = complete
    const R2_ENDPOINT = 'http://127.0.0.1:9000'
    expect(loadConfig({ ...rest, R2_ENDPOINT }).store.endpoint).toBe(R2_ENDPOINT)
    expect(loadConfig({ ...rest, R2_ACCOUNT_ID, R2_ENDPOINT }).store.endpoint).toBe(R2_ENDPOINT)
    expect(problemsOf(rest)).toMatchObject([{ variable: 'R2_ACCOUNT_ID', found: 'nothing' }])
  })

  test('a threshold that the environment does not name is left to the database', () => {
    expect(loadConfig(complete).thresholdBytes).toBeUndefined()
    expect(loadConfig({ ...complete, AI_ARTIFACT_META_THRESHOLD_BYTES: '8000' }).thresholdBytes).toBe(8000)
  })

  test('a batch has room for every payload that is not streamed', () => {
    const { offload } = loadConfig({
      ...complete,
      OFFLOAD_BATCH_BYTES: '65536',
      STREAM_THRESHOLD_BYTES: '1048576',
    })
    expect(offload.batchBytes).toBe(1_048_576)
  })

  test('the limits of a range are inside it', () => {
    expect(loadConfig({ ...complete, DATABASE_POOL_SIZE: '2' }).poolSize).toBe(2)
    expect(loadConfig({ ...complete, DATABASE_POOL_SIZE: ' 200 ' }).poolSize).toBe(200)
  })

  test('the owner connects as ADMIN_DATABASE_URL where it is set, and as DATABASE_URL otherwise', () => {
    const DATABASE_URL = 'postgresql://worker@h/db'
    const ADMIN_DATABASE_URL = 'postgresql://owner@h/db'
    expect(loadAdminDatabaseUrl({ DATABASE_URL, ADMIN_DATABASE_URL })).toBe(ADMIN_DATABASE_URL)
    expect(loadAdminDatabaseUrl({ DATABASE_URL })).toBe(DATABASE_URL)
    expect(loadDatabaseUrl({ DATABASE_URL, ADMIN_DATABASE_URL })).toBe(DATABASE_URL)
    expect(configErrorOf(() => loadAdminDatabaseUrl({})).problems).toMatchObject([
      { variable: 'DATABASE_URL', found: 'nothing' },
    ])
  })
})

describe('the HTTP API', () => {
  const secret = 's'.repeat(32)
  const key = 'k'.repeat(32)
  const apiOf = (env: Variables) => loadConfig({ ...complete, ...env }).api

  test('is off unless AUTH_MODE says who may call, whatever keys there are', () => {
    expect(apiOf({}).auth).toEqual({ mode: 'off' })
    const keys = { JWT_SECRET: secret, JWT_JWKS_FILE: '/nowhere', SERVICE_API_KEY: key }
    expect(apiOf(keys)).toMatchObject({ auth: { mode: 'off' }, serviceKeys: [key] })
    expect(problemsOf({ ...complete, AUTH_MODE: 'none' })).toEqual([
      { variable: 'AUTH_MODE', found: '"none"', expected: 'one of jwt, service, dev' },
    ])
  })

  describe('AUTH_MODE=jwt', () => {
    const jwt = (env: Variables) => apiOf({ AUTH_MODE: 'jwt', ...env }).auth

    test.each<[string, Variables, object, string[]]>([
      ['a secret', { JWT_SECRET: secret }, { secret }, ['HS256']],
      [
        'keys from a URL',
        { JWT_JWKS_URL: 'https://a.example.com/jwks.json' },
        { jwksUrl: 'https://a.example.com/jwks.json' },
        ['RS256', 'ES256', 'EdDSA'],
      ],
      [
        'keys from a file',
        { JWT_JWKS_FILE: '/keys.json' },
        { jwksFile: '/keys.json' },
        ['RS256', 'ES256', 'EdDSA'],
      ],
    ])('takes %s', (_, env, expected, algorithms) => {
      expect(jwt(env)).toEqual({
        mode: 'jwt',
        key: expected,
        algorithms,
        issuer: undefined,
        audience: undefined,
        tenantClaim: ['tenant_id'],
      })
    })

    test('takes issuer, audience and a nested claim', () => {
      const env = {
        JWT_ISSUER: 'https://i',
        JWT_AUDIENCE: 'authenticated',
        JWT_TENANT_CLAIM: 'app_metadata.tenant_id',
      }
      expect(jwt({ JWT_SECRET: secret, ...env })).toMatchObject({
        issuer: 'https://i',
        audience: 'authenticated',
        tenantClaim: ['app_metadata', 'tenant_id'],
      })
    })

    test.each<[string, Variables, string]>([
      ['no key', {}, 'nothing'],
      [
        'a secret beside a URL',
        { JWT_SECRET: secret, JWT_JWKS_URL: 'https://h/j' },
        'more than one kind of key',
      ],
      [
        'a URL beside a file',
        { JWT_JWKS_FILE: 'f', JWT_JWKS_URL: 'https://h/j' },
        'more than one kind of key',
      ],
    ])('refuses %s', (_, env, found) => {
      expect(problemsOf({ ...complete, AUTH_MODE: 'jwt', ...env })).toEqual([
        {
          variable: 'JWT_SECRET',
          found,
          expected: 'one of JWT_SECRET, JWT_JWKS_URL and JWT_JWKS_FILE, for AUTH_MODE=jwt',
        },
      ])
    })

    test.each([
      ['HS512', { JWT_SECRET: secret }],
      ['HS256,HS384', { JWT_SECRET: secret }],
      ['EdDSA', { JWT_JWKS_FILE: 'f' }],
      ['RS256,PS512,ES384', { JWT_JWKS_FILE: 'f' }],
    ])('takes the algorithms %s', (JWT_ALGORITHMS, env) => {
      expect(jwt({ ...env, JWT_ALGORITHMS })).toMatchObject({ algorithms: JWT_ALGORITHMS.split(',') })
    })

    test.each<[string, Variables]>([
      ['RS256', { JWT_SECRET: secret }],
      ['HS256,RS256', { JWT_SECRET: secret }],
      ['HS256', { JWT_JWKS_FILE: 'f' }],
      ['ES256,HS256', { JWT_JWKS_URL: 'https://h/j' }],
      ['none', { JWT_JWKS_FILE: 'f' }],
      ['none', { JWT_SECRET: secret }],
      ['hs256', { JWT_SECRET: secret }],
      ['RS256, ES256', { JWT_JWKS_FILE: 'f' }],
      ['RS256,', { JWT_JWKS_FILE: 'f' }],
      ['RS128', { JWT_JWKS_FILE: 'f' }],
    ])('refuses the algorithms %s with %j', (JWT_ALGORITHMS, env) => {
      expect(problemsOf({ ...complete, AUTH_MODE: 'jwt', ...env, JWT_ALGORITHMS })).toMatchObject([
        { variable: 'JWT_ALGORITHMS' },
      ])
    })

    test.each([
      ['JWT_JWKS_URL', 'ftp://h/j'],
      ['JWT_JWKS_URL', 'h/j'],
      ['JWT_TENANT_CLAIM', 'app_metadata.'],
      ['JWT_TENANT_CLAIM', '.tenant_id'],
      ['JWT_TENANT_CLAIM', 'a b'],
      ['JWT_TENANT_CLAIM', 'https://example.com/tenant'],
    ])('refuses %s=%s', (variable, value) => {
      expect(problemsOf({ ...complete, [variable]: value })).toMatchObject([
        { variable, found: JSON.stringify(value) },
      ])
    })
  })

  test('a secret shorter than 32 characters is refused, and not shown', () => {
    expect(apiOf({ JWT_SECRET: secret }).auth).toEqual({ mode: 'off' })
    expect(problemsOf({ ...complete, JWT_SECRET: secret.slice(1) })).toEqual([
      {
        variable: 'JWT_SECRET',
        found: 'a value that is not valid (hidden)',
        expected: 'a secret of 32 characters or more',
      },
    ])
  })

  test('AUTH_MODE=service needs a key, or several to rotate them', () => {
    expect(apiOf({ AUTH_MODE: 'service', SERVICE_API_KEY: key })).toMatchObject({
      auth: { mode: 'service' },
      serviceKeys: [key],
    })
    const other = 'o'.repeat(40)
    expect(apiOf({ SERVICE_API_KEY: `${key}, ${other}` }).serviceKeys).toEqual([key, other])
    expect(problemsOf({ ...complete, AUTH_MODE: 'service' })).toEqual([
      {
        variable: 'SERVICE_API_KEY',
        found: 'nothing',
        expected: 'a key of 32 characters or more, for AUTH_MODE=service',
      },
    ])
  })

  test.each([key.slice(1), `${key},short`, `${key},`, `,${key}`, `${key.slice(1)} x`, `${key}é`, ','])(
    'the service keys %j are refused, and not shown',
    SERVICE_API_KEY => {
      const problems = problemsOf({ ...complete, AUTH_MODE: 'service', SERVICE_API_KEY })
      expect(problems).toMatchObject([
        { variable: 'SERVICE_API_KEY', found: 'a value that is not valid (hidden)' },
      ])
    },
  )

  test.each(['127.0.0.1', '127.1.2.3', 'localhost', '::1'])('AUTH_MODE=dev is taken on %s', API_HOST => {
    expect(apiOf({ AUTH_MODE: 'dev', API_HOST })).toMatchObject({
      host: API_HOST === 'localhost' ? '127.0.0.1' : API_HOST,
      auth: { mode: 'dev' },
    })
  })

  test.each([
    '0.0.0.0',
    '::',
    '10.0.0.1',
    'app.local',
    'localhost.example.com',
    '127.0.0.1.example.com',
    '128.0.0.1',
  ])('AUTH_MODE=dev is refused on %s', API_HOST => {
    expect(problemsOf({ ...complete, AUTH_MODE: 'dev', API_HOST })).toEqual([
      {
        variable: 'API_HOST',
        found: `${API_HOST}, with AUTH_MODE=dev`,
        expected: 'a loopback address, or AUTH_MODE jwt or service',
      },
    ])
    expect(apiOf({ AUTH_MODE: 'jwt', JWT_SECRET: secret, API_HOST }).host).toBe(API_HOST)
  })

  test('AUTH_MODE=dev is refused in production, the other modes are not', () => {
    const production = { ...complete, NODE_ENV: 'production' }
    expect(problemsOf({ ...production, AUTH_MODE: 'dev' })).toEqual([
      { variable: 'AUTH_MODE', found: 'dev, with NODE_ENV=production', expected: 'jwt or service' },
    ])
    for (const AUTH_MODE of [undefined, 'jwt', 'service'])
      loadConfig({ ...production, AUTH_MODE, JWT_SECRET: secret, SERVICE_API_KEY: key })
  })

  test('what is wrong with authentication is reported together with all else', () => {
    expect(problemsOf({ ...complete, AUTH_MODE: 'jwt', LOG_LEVEL: 'loud' }).map(p => p.variable)).toEqual([
      'LOG_LEVEL',
      'JWT_SECRET',
    ])
  })

  test('ARTIFACT_KINDS is a list of kinds', () => {
    expect(apiOf({ ARTIFACT_KINDS: 'invoice_scan,call_recording' }).kinds).toEqual([
      'invoice_scan',
      'call_recording',
    ])
    for (const value of ['Invoice', 'invoice scan', 'a,,b', 'a,', '1st', '../x', 'a/b'])
      expect(problemsOf({ ...complete, ARTIFACT_KINDS: value })).toMatchObject([
        { variable: 'ARTIFACT_KINDS' },
      ])
  })

  test('the dashboard shows payloads where its key reads them anyway, or when that is said', () => {
    const secret = 'k'.repeat(32)
    const service = { AUTH_MODE: 'service', SERVICE_API_KEY: secret }
    const jwt = { AUTH_MODE: 'jwt', JWT_SECRET: secret }
    for (const [env, expected] of [
      [service, { payloads: true }],
      [{ ...service, DASHBOARD_PAYLOADS: 'off' }, { payloads: false }],
      [{ AUTH_MODE: 'dev' }, { payloads: true }],
      [jwt, { payloads: false }],
      [{ ...jwt, DASHBOARD_PAYLOADS: 'on' }, { payloads: true }],
      [{ ...service, DASHBOARD: 'off', DASHBOARD_PAYLOADS: 'on' }, null],
    ] as const)
      expect(apiOf(env).dashboard).toEqual(expected)
    expect(problemsOf({ ...complete, DASHBOARD: 'yes' })).toMatchObject([{ variable: 'DASHBOARD' }])
  })

  test('API_CORS_ORIGINS is a list of origins, never any', () => {
    expect(apiOf({ API_CORS_ORIGINS: 'https://a.example.com,http://localhost:3000' }).corsOrigins).toEqual([
      'https://a.example.com',
      'http://localhost:3000',
    ])
    for (const value of [
      '*',
      'a.example.com',
      'https://a.example.com/',
      'https://a,',
      'null',
      'https://a https://b',
    ])
      expect(problemsOf({ ...complete, API_CORS_ORIGINS: value })).toMatchObject([
        { variable: 'API_CORS_ORIGINS' },
      ])
  })

  test('API_PUBLIC_URL loses its closing slash', () => {
    expect(apiOf({ API_PUBLIC_URL: 'https://artifacts.example.com/' }).publicUrl).toBe(
      'https://artifacts.example.com',
    )
    expect(apiOf({ API_PUBLIC_URL: 'https://example.com/artifacts/' }).publicUrl).toBe(
      'https://example.com/artifacts',
    )
    expect(problemsOf({ ...complete, API_PUBLIC_URL: 'artifacts.example.com' })).toMatchObject([
      { variable: 'API_PUBLIC_URL' },
    ])
  })

  test.each([
    ['API_PORT', 0, 65_535],
    ['API_BODY_LIMIT_BYTES', 1024, 67_108_864],
    ['API_RAW_LIMIT_BYTES', 1024, 5_368_709_120],
    ['API_HYDRATE_LIMIT_BYTES', 1_048_576, 536_870_912],
    ['API_RATE_LIMIT', 0, 1_000_000],
    ['API_UPLOAD_CONCURRENCY', 1, 64],
    ['API_REQUEST_TIMEOUT_MS', 1000, 3_600_000],
  ])('%s goes from %d to %d', (variable, min, max) => {
    const taken = (value: number) => Object.values(apiOf({ [variable]: String(value) }))
    expect(taken(min)).toContain(min)
    expect(taken(max)).toContain(max)
    for (const value of [min - 1, max + 1, 1.5]) {
      expect(problemsOf({ ...complete, [variable]: String(value) })).toEqual([
        { variable, found: `"${value}"`, expected: `a whole number from ${min} to ${max}` },
      ])
    }
  })
})

describe('sweeps', () => {
  test('a pack with dead bytes can not be gone before its grace is over', () => {
    expect(problemsOf({ ...complete, SWEEP_GRACE_DAYS: '31' })).toEqual([
      {
        variable: 'SWEEP_ERASURE_DAYS',
        found: '30',
        expected: expect.stringMatching(/SWEEP_GRACE_DAYS \(31\)/),
      },
    ])
  })

  const sweepsOf = (env: Variables) => loadConfig({ ...complete, ...env }).sweeps
  const crons = Object.keys(environmentSchema.shape).filter(name => /^SWEEP_\w+_CRON$/.test(name))
  const nameOf = (variable: string) => variable.slice('SWEEP_'.length, -'_CRON'.length).toLowerCase()

  test('each has a schedule of its own', () => {
    expect(crons.map(nameOf).sort()).toEqual(Object.keys(sweepsOf({}).schedules).sort())
  })

  test.each(crons)('%s takes a cron expression, or off', variable => {
    const { schedules } = sweepsOf({})
    const set = (value: string) => sweepsOf({ [variable]: value }).schedules
    expect(set('off')).toEqual({ ...schedules, [nameOf(variable)]: null })
    for (const value of ['0 4 * * *', '*/5 2-4 1,15 * 1-5', '0 4 * jan sun'])
      expect(set(value)).toEqual({ ...schedules, [nameOf(variable)]: value })
    expect(set('')).toEqual(schedules)
    for (const value of ['daily', '17 3 * *', '60 3 * * *', '17 24 * * *', '*/10', 'OFF', '17;3;*;*;*']) {
      expect(problemsOf({ ...complete, [variable]: value })).toEqual([
        {
          variable,
          found: JSON.stringify(value),
          expected: 'a cron expression, in UTC, such as 17 3 * * *, or off',
        },
      ])
    }
  })

  test.each([
    ['SWEEP_BATCH_SIZE', 1, 1000],
    ['SWEEP_RATE', 1, 1_000_000],
    ['SWEEP_GRACE_DAYS', 0, 3650],
    ['SWEEP_TOMBSTONE_DAYS', 1, 36_500],
    ['SWEEP_READER_GRACE_MS', 1000, 86_400_000],
    ['SWEEP_ERASURE_DAYS', 1, 3650],
    ['SWEEP_VERIFY_SAMPLE', 0, 1_000_000],
  ])('%s goes from %d to %d', (variable, min, max) => {
    // The one must not be longer than the other.
    const apart = { SWEEP_GRACE_DAYS: '0', SWEEP_ERASURE_DAYS: '3650' }
    const taken = (value: number) => Object.values(sweepsOf({ ...apart, [variable]: String(value) }))
    expect(taken(min)).toContain(min)
    expect(taken(max)).toContain(max)
    for (const value of [min - 1, max + 1, 1.5]) {
      expect(problemsOf({ ...complete, [variable]: String(value) })).toEqual([
        { variable, found: `"${value}"`, expected: `a whole number from ${min} to ${max}` },
      ])
    }
  })

  test('SWEEP_COMPACT_LIVE_PERCENT is a share of bytes', () => {
    expect(sweepsOf({ SWEEP_COMPACT_LIVE_PERCENT: '100' }).compactLiveShare).toBe(1)
    expect(sweepsOf({ SWEEP_COMPACT_LIVE_PERCENT: '1' }).compactLiveShare).toBe(0.01)
    for (const value of ['0', '101', '0.5', '50%'])
      expect(problemsOf({ ...complete, SWEEP_COMPACT_LIVE_PERCENT: value })).toMatchObject([
        { variable: 'SWEEP_COMPACT_LIVE_PERCENT' },
      ])
  })

  test('an object counts as settled when no request for it can still be under way', () => {
    expect(sweepsOf({ STORE_TIMEOUT_MS: '1000' }).settleMs).toBe(16_000 + 60_000)
  })
})

describe('traces', () => {
  const tracingOf = (env: Variables) => loadConfig({ ...complete, ...env }).tracing

  test('go nowhere unless an endpoint is named', () => {
    expect(tracingOf({ OTEL_SERVICE_NAME: 'x' })).toBeNull()
    expect(tracingOf({ OTEL_EXPORTER_OTLP_ENDPOINT: 'http://h:4318', OTEL_SDK_DISABLED: 'true' })).toBeNull()
  })

  test.each([
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: 'http://h:4318' }, 'http://h:4318/v1/traces'],
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: 'https://h/otlp/' }, 'https://h/otlp/v1/traces'],
    [
      {
        OTEL_EXPORTER_OTLP_ENDPOINT: 'http://h:4318',
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'http://traces/in',
      },
      'http://traces/in',
    ],
  ])('%j', (env, url) => {
    expect(tracingOf(env)?.url).toBe(url)
  })

  test('have the defaults of OpenTelemetry, and headers and attributes in its form', () => {
    expect(
      tracingOf({
        OTEL_EXPORTER_OTLP_ENDPOINT: 'http://h:4318',
        OTEL_EXPORTER_OTLP_HEADERS: 'authorization=Bearer%20a%3Db, x-scope=1',
        OTEL_RESOURCE_ATTRIBUTES: 'deployment.environment=a%2Cb',
        OTEL_TRACES_SAMPLER: 'traceidratio',
        OTEL_TRACES_SAMPLER_ARG: '0.25',
      }),
    ).toEqual({
      url: 'http://h:4318/v1/traces',
      headers: { authorization: 'Bearer a=b', 'x-scope': '1' },
      timeoutMs: 10_000,
      serviceName: 'pg-lighter',
      resource: { 'deployment.environment': 'a,b' },
      sampler: 'traceidratio',
      samplerRatio: 0.25,
      queueSpans: 2048,
      scheduleMs: 5000,
      tenants: false,
    })
  })

  test.each([
    ['OTEL_EXPORTER_OTLP_ENDPOINT', 'collector:4318'],
    ['OTEL_EXPORTER_OTLP_PROTOCOL', 'grpc'],
    ['OTEL_EXPORTER_OTLP_HEADERS', 'authorization'],
    ['OTEL_EXPORTER_OTLP_HEADERS', 'a=%zz'],
    ['OTEL_TRACES_SAMPLER_ARG', '1.5'],
    ['OTEL_TRACES_SAMPLER', 'jaeger_remote'],
    ['METRICS_TENANTS', '100000'],
  ])('%s=%s is refused', (variable, value) => {
    expect(problemsOf({ ...complete, [variable]: value })).toMatchObject([{ variable }])
  })
})

describe('.env.example', () => {
  const text = readFileSync(path.join(import.meta.dirname, '..', '..', '.env.example'), 'utf8')
  const lines = text.split('\n')
  const entries = lines.flatMap((line, i) => {
    // A description may begin with a setting too ("AUTH_MODE=jwt: …"), but goes on in words.
    const match = /^(# )?([A-Z0-9_]+)=(\S*|[\d*/,-]+(?: [\d*/,-]+){4})$/.exec(line)
    if (match === null) return []
    return [
      { optional: match[1] !== undefined, name: match[2] ?? '', value: match[3], comment: lines[i - 1] },
    ]
  })

  test('lists exactly the variables that are read, once each', () => {
    expect(entries.map(e => e.name).sort()).toEqual(Object.keys(environmentSchema.shape).sort())
  })

  test('has the description of each above it and its default behind it', () => {
    for (const entry of entries) {
      const schema = Object.entries(environmentSchema.shape).find(([name]) => name === entry.name)?.[1]
      expect(entry.comment).toBe(`# ${schema?.description}`)
      const preset = schema?.safeParse(undefined)
      expect([entry.name, entry.value]).toEqual([entry.name, String(preset?.data ?? '')])
    }
  })

  test('leaves uncommented what must be filled in, and is complete with it', () => {
    const uncommented = entries.filter(e => !e.optional).map(e => e.name)
    // The owner's login is not required, but the migration rarely goes without it.
    const needed = ['ADMIN_DATABASE_URL', ...problemsOf({}).map(p => p.variable)]
    expect(uncommented).toEqual(needed.sort((a, b) => position(a) - position(b)))
    const filledIn = { ...parseEnv(text), ...complete }
    expect(loadConfig(filledIn)).toEqual(loadConfig(complete))
  })

  test('names the files of all secrets', () => {
    const named = text.match(/[A-Z0-9_]+_FILE\b/g)?.filter(name => !(name in environmentSchema.shape))
    expect(named?.sort()).toEqual(secretVariables.map(name => `${name}_FILE`).sort())
  })

  const position = (name: string) => entries.findIndex(e => e.name === name)
})
