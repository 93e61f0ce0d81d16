// The documents against the code: links lead somewhere, and what is listed is complete.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { requireKind } from '../../src/artifacts/kinds.ts'
import { environmentSchema, loadConfig, secretVariables } from '../../src/config.ts'
import { blocksOf, documents, readDoc } from '../support/doc-blocks.ts'

const root = path.join(import.meta.dirname, '..', '..')
const read = (name: string) => readFileSync(path.join(root, name), 'utf8')

/** As GitHub makes them of headings. */
function anchorsOf(markdown: string): Set<string> {
  const headings = markdown.replace(/^```[\s\S]*?^```/gm, '').match(/^#+ .*$/gm) ?? []
  return new Set(
    headings.map(line =>
      line
        .replace(/^#+ /, '')
        .toLowerCase()
        .replace(/[^\p{L}\p{N} _-]/gu, '')
        .replaceAll(' ', '-'),
    ),
  )
}

/** Cells of the table rows, in the section of that name. */
function tableOf(markdown: string, heading: string): string[][] {
  const section = markdown.split(new RegExp(`^## ${heading}$`, 'm'))[1]?.split(/^## /m)[0] ?? ''
  return (section.match(/^\|.*\|$/gm) ?? []).slice(2).map(line =>
    line
      .slice(1, -1)
      .split('|')
      .map(cell => cell.trim()),
  )
}

describe.each(documents())('%s', name => {
  const markdown = read(name)

  test('has links that lead somewhere', () => {
    const links = [...markdown.matchAll(/\]\(([^)\s]+)\)/g)].map(([, link = '']) => link)
    for (const link of links) {
      if (/^https?:/.test(link)) continue
      const [file = '', anchor] = link.split('#')
      const target = file === '' ? name : path.join(path.dirname(name), file)
      expect(existsSync(path.join(root, target)), `${name} links to ${target}`).toBe(true)
      if (anchor !== undefined)
        expect([...anchorsOf(read(target))], `${name} links to ${link}`).toContain(anchor)
    }
  })

  test('names files and folders that exist', () => {
    const paths = [
      ...markdown.matchAll(/`((?:src|sql|test|docs|bench|reference|examples|monitoring|deploy)\/[\w./-]+)`/g),
    ].map(([, found = '']) => found)
    for (const found of paths) expect(existsSync(path.join(root, found)), found).toBe(true)
  })
})

describe('docs/api.md', () => {
  const markdown = readDoc('api.md')

  test('lists exactly the error codes that there are, with their status', () => {
    const files = readdirSync(path.join(root, 'src/api'), { recursive: true, encoding: 'utf8' })
    const source = files
      .filter(file => file.endsWith('.ts'))
      .map(file => read(`src/api/${file}`))
      .join('\n')
    const thrown = [
      ...source.matchAll(/new ApiError\(\s*(\d{3}),\s*'(\w+)'/g),
      ...source.matchAll(/\[\s*(\d{3}),\s*'([a-z_]+)',/g),
    ].map(([, status, code]) => `${status} ${code}`)
    const mapped = [...source.matchAll(/^ {2}([a-z_]+): \[(\d{3}), '/gm)].map(
      ([, code, status]) => `${status} ${code}`,
    )
    // Written otherwise: a helper, the answers below HTTP, and errors that have the status of all unknown ones.
    const others = [
      '401 unauthorized',
      '408 request_timeout',
      '431 headers_too_large',
      '502 pointer_cycle',
      '502 hydrate_failed',
    ]
    for (const other of others) {
      const [, code = ''] = other.split(' ')
      expect(`${source}${read('src/artifacts/hydrate.ts')}`).toContain(`'${code}'`)
    }
    const listed = tableOf(markdown, 'Errors').map(
      ([status, code = '']) => `${status} ${code.replaceAll('`', '')}`,
    )
    expect([...new Set(listed)]).toEqual(listed)
    expect(listed.sort()).toEqual([...new Set([...thrown, ...mapped, ...others])].sort())
  })

  test('lists the limits with their defaults', () => {
    const rows = tableOf(markdown, 'Limits')
    expect(rows.length).toBeGreaterThan(5)
    for (const [name = '', preset] of rows) {
      const schema = Object.entries(environmentSchema.shape).find(([key]) => `\`${key}\`` === name)?.[1]
      expect([name, preset]).toEqual([name, String(schema?.safeParse(undefined).data)])
    }
    const named = rows.map(([name]) => name)
    const limits = Object.keys(environmentSchema.shape).filter(name =>
      /^API_.*(_BYTES|_LIMIT|CONCURRENCY|_MS)$/.test(name),
    )
    expect(named).toEqual(expect.arrayContaining(limits.map(name => `\`${name}\``)))
  })

  test('says of every setting of the API what it is for', () => {
    const settings = Object.keys(environmentSchema.shape).filter(name =>
      /^(AUTH_|API_|JWT_|SERVICE_|ARTIFACT_)/.test(name),
    )
    expect(settings.length).toBeGreaterThan(15)
    for (const name of settings) expect(markdown).toMatch(new RegExp(`\\b${name}\\b`))
  })

  test('lists the kinds', () => {
    const paragraph = /\*\*Kinds\*\*[\s\S]*?ARTIFACT_KINDS/.exec(markdown)?.[0] ?? ''
    const listed = [...paragraph.matchAll(/`([a-z_]+)`/g)].map(([, kind = '']) => kind)
    // The refusal of any other names them all.
    expect(() => requireKind('none_of_them', [])).toThrow(`is not one of ${listed.join(', ')};`)
    for (const kind of listed) requireKind(kind, [])
  })

  test('has settings for Supabase that are taken', () => {
    const settings = blocksOf(markdown).find(block => block.info === 'sh env')?.text ?? ''
    const env = Object.fromEntries(
      settings
        .trim()
        .replaceAll('<ref>', 'abcdefghijklmnopqrst')
        .split('\n')
        .map(line => line.split('=') as [string, string]),
    )
    const { auth } = loadConfig({
      DATABASE_URL: 'postgresql:///db',
      R2_ACCOUNT_ID: 'a',
      R2_ACCESS_KEY_ID: 'k',
      R2_SECRET_ACCESS_KEY: 's',
      R2_BUCKET: 'b',
      ...env,
    }).api
    expect(auth).toMatchObject({
      mode: 'jwt',
      audience: 'authenticated',
      tenantClaim: ['app_metadata', 'tenant_id'],
    })
  })

  test('has a CORS rule for the bucket that lets a page read, and nothing else', () => {
    const rules = JSON.parse(blocksOf(markdown).find(block => block.info === 'json cors')?.text ?? '')
    expect(rules).toMatchObject([{ AllowedMethods: ['GET'], AllowedOrigins: ['https://app.example.com'] }])
  })
})

describe('docs/security.md', () => {
  const markdown = readDoc('security.md')

  test('says of every secret how it is rotated', () => {
    const rotated = tableOf(markdown, 'Rotating secrets')
      .map(([secret]) => secret)
      .join()
    for (const name of secretVariables) expect(rotated).toContain(`\`${name}\``)
  })
})

test('the variables that the documents name are read', () => {
  for (const name of documents()) {
    const named = [
      ...read(name).matchAll(
        /`((?:AUTH|API|JWT|SERVICE|ARTIFACT|OFFLOAD|R2|STREAM|DATABASE|LISTEN|ADMIN|SHUTDOWN|STORE|PACK|MULTIPART|POLL|SWEEP|UPLOAD|MAX|METRICS|OTEL|TRACES)_[A-Z0-9_]+)(?:=[^`]*)?`/g,
      ),
    ]
    for (const [, variable = ''] of named) {
      if (variable.endsWith('_')) continue
      const known =
        variable in environmentSchema.shape || secretVariables.some(secret => `${secret}_FILE` === variable)
      expect([name, variable, known]).toEqual([name, variable, true])
    }
  }
})

test('the index leads to every document', () => {
  const index = readDoc('README.md')
  const named = [...index.matchAll(/\]\(([^)#]+\.md)\)/g)].map(([, link = '']) =>
    path.posix.join('docs', link),
  )
  expect(named).toEqual(
    expect.arrayContaining(documents().filter(name => /^docs\//.test(name) && name !== 'docs/README.md')),
  )
})

describe('the pictures', () => {
  const pictures = documents().flatMap(name =>
    blocksOf(read(name))
      .filter(block => block.info === 'mermaid')
      .map(block => ({ name: `${name}:${block.line}`, text: block.text })),
  )
  // A check of our own: mermaid's parser needs a browser for most kinds.
  const lines: Record<string, RegExp> = {
    flowchart:
      /^(?:subgraph \w+\["[^"]+"\]|end|\w+(?:\["[^"]+"\]|\[\("?[^"]+"?\)\])?(?: -\.?->(?:\|[^|]+\|)? \w+(?:\["[^"]+"\]|\[\("?[^"]+"?\)\])?)*)$/,
    'stateDiagram-v2': /^(?:\[\*\]|\w+) --> (?:\[\*\]|\w+)(?:: [^:]+)?$/,
    sequenceDiagram: /^(?:participant \w+(?: as \w+)?|Note over \w+: .+|\w+-?->>\w+: .+)$/,
  }

  test('are there', () => {
    expect(pictures.length).toBeGreaterThanOrEqual(6)
  })

  test.each(pictures)('$name is drawn by GitHub', ({ text }) => {
    const [first = '', ...rest] = text.trimEnd().split('\n')
    const [kind = ''] = first.split(' ')
    expect(Object.keys(lines)).toContain(kind)
    for (const line of rest) expect(line.trim()).toMatch(lines[kind] ?? /$^/)
    const count = (pattern: RegExp) => rest.filter(line => pattern.test(line.trim())).length
    expect(count(/^subgraph /)).toBe(count(/^end$/))
  })
})
