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
    ['OFFLOAD_LINGER_MS', '-1', 'a whole number from 0 to 60000'],
    ['OFFLOAD_LINGER_MS', '1.5', 'a whole number from 0 to 60000'],
    ['OFFLOAD_LINGER_MS', ' ', 'a whole number from 0 to 60000'],
    ['OFFLOAD_LINGER_MS', '10ms', 'a whole number from 0 to 60000'],
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
      Object.keys(environmentSchema.shape).filter(name => /DATABASE_URL$|ACCESS_KEY/.test(name)),
    )
  })
})

describe('NAME_FILE', () => {
  const sampleOf = (name: string) => (name.endsWith('URL') ? `postgresql://u:pw@h/${name}` : `key of ${name}`)
  const found = (env: Variables) => {
    const config = loadConfig(env)
    return {
      DATABASE_URL: config.databaseUrl,
      LISTEN_DATABASE_URL: config.listenDatabaseUrl,
      ADMIN_DATABASE_URL: config.adminDatabaseUrl,
      R2_ACCESS_KEY_ID: config.store.accessKeyId,
      R2_SECRET_ACCESS_KEY: config.store.secretAccessKey,
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
      offload: {
        packing: true,
        codec: 'zstd',
        maxPackBytes: 8 * 1024 ** 2,
        maxPackArtifacts: 2000,
        batchRows: 2000,
        batchBytes: 16 * 1024 ** 2,
        batchesInFlight: 3,
        lingerMs: 0,
        maxAttempts: 8,
        leaseMs: 60_000,
        streamThresholdBytes: 4 * 1024 ** 2,
        maxPayloadBytes: 256 * 1024 ** 2,
        streamConcurrency: 2,
        partBytes: 8 * 1024 ** 2,
        uploadConcurrency: 16,
      },
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

describe('.env.example', () => {
  const text = readFileSync(path.join(import.meta.dirname, '..', '..', '.env.example'), 'utf8')
  const lines = text.split('\n')
  const entries = lines.flatMap((line, i) => {
    const match = /^(# )?([A-Z0-9_]+)=(.*)$/.exec(line)
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
    const named = text.match(/[A-Z0-9_]+_FILE\b/g)
    expect(named?.sort()).toEqual(secretVariables.map(name => `${name}_FILE`).sort())
  })

  const position = (name: string) => entries.findIndex(e => e.name === name)
})
