import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { constants, gzipSync, zstdCompressSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { splitObject } from '../../src/artifacts/raw-json.ts'
import { type DemoMessage, generateMessages, readMessages } from '../../src/demo/messages.ts'

describe('generated messages', () => {
  const messages = [...generateMessages({ seed: 1, messages: 6_000, tenants: 5 })]
  const interactions = messages.flatMap(message => textOf(message, 'tool_interactions'))

  test('the same seed gives the same messages, another seed others', () => {
    const again = [...generateMessages({ seed: 1, messages: 6_000, tenants: 5 })]
    expect(again).toEqual(messages)
    expect([...generateMessages({ seed: 2, messages: 1, tenants: 5 })]).not.toEqual(messages.slice(0, 1))
  })

  test('sizes and shares of payloads are those of the measured data', () => {
    const sizes = interactions.map(jsonbLength).sort((a, b) => a - b)
    const traces = messages.filter(message => textOf(message, 'trace').length > 0)
    const traceSizes = traces.map(message => jsonbLength(message.metadata)).sort((a, b) => a - b)
    const near = (value: number, measured: number) => {
      expect(value).toBeGreaterThan(measured * 0.8)
      expect(value).toBeLessThan(measured * 1.2)
    }
    near(sizes.length / messages.length, 0.19)
    near(quantile(sizes, 0.5), 939)
    near(quantile(sizes, 0.9), 3_693)
    near(quantile(sizes, 0.99), 8_938)
    expect(quantile(sizes, 1)).toBeLessThan(20_000)
    near(traces.length / messages.length, 0.064)
    near(quantile(traceSizes, 0.5), 9_678)
    near(quantile(traceSizes, 1), 35_675)
    expect(messages.filter(message => message.metadata === '{}').length / messages.length).toBeGreaterThan(
      0.4,
    )
  })

  test('payloads of one tenant compress about as well as real ones (8.9 in frames of 64 KiB)', () => {
    const biggest = messages[0]?.tenantId
    const own = messages.filter(message => message.tenantId === biggest)
    const lines = own.flatMap(message => textOf(message, 'tool_interactions'))
    const text = Buffer.from(lines.join('\n'))
    let compressed = 0
    for (let at = 0; at < text.length; at += 65_536) {
      const params = { [constants.ZSTD_c_compressionLevel]: 1 }
      compressed += zstdCompressSync(text.subarray(at, at + 65_536), { params }).length
    }
    expect(text.length / compressed).toBeGreaterThan(6)
    expect(text.length / compressed).toBeLessThan(11)
  })

  test('all metadata is a JSON object, and about one in a hundred messages holds values that are easily damaged', () => {
    let hard = 0
    for (const { metadata } of messages) {
      expect(typeof JSON.parse(metadata)).toBe('object')
      if (/"crm_lookup","args"|^\{"client"/.test(metadata)) hard++
    }
    expect(hard / messages.length).toBeGreaterThan(0.005)
    expect(hard / messages.length).toBeLessThan(0.02)
    const text = interactions.join()
    for (const value of [
      ':1e400,',
      ':12345678901234567890.5,',
      '東京',
      'أريد',
      '👩‍👩‍👧‍👦',
      '\\ud83d\\ude80',
      '{"next":'.repeat(45),
    ]) {
      expect(text).toContain(value)
    }
  })

  test('conversations interleave, number their messages from 0 and stay with their tenant', () => {
    const seen = new Map<string, DemoMessage>()
    for (const message of messages) {
      const before = seen.get(message.conversationId)
      expect(message.seq).toBe(before === undefined ? 0 : before.seq + 1)
      expect(message.tenantId).toBe(before?.tenantId ?? message.tenantId)
      expect(message.conversationId).toMatch(
        /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
      )
      seen.set(message.conversationId, message)
    }
    expect(new Set(messages.slice(0, 50).map(message => message.conversationId)).size).toBeGreaterThan(20)
  })

  test('tenants are of uneven size', () => {
    const sizes = [...Map.groupBy(messages, message => message.tenantId).values()].map(own => own.length)
    expect(sizes).toHaveLength(5)
    expect(Math.max(...sizes)).toBeGreaterThan(3 * Math.min(...sizes))
  })

  test('exactly one message carries the large payload, in the middle, of about the size asked for', () => {
    const sized = [...generateMessages({ seed: 3, messages: 101, tenants: 2, largeBytes: 3_000_000 })]
    const large = sized.filter(message => message.metadata.length > 100_000)
    expect(large).toEqual([sized[50]])
    const [payload] = large.flatMap(message => textOf(message, 'tool_interactions'))
    expect(payload).toMatch(/^\[\{"tool":"document_analysis"/)
    expect(Buffer.byteLength(payload ?? '')).toBeGreaterThan(3_000_000)
    expect(Buffer.byteLength(payload ?? '')).toBeLessThan(3_010_000)
    expect(() => JSON.parse(payload ?? '')).not.toThrow()
  })

  test('a stream may be endless, or of a single message', () => {
    const endless = generateMessages({ seed: 1, messages: Infinity, tenants: 1_000 })
    for (let count = 0; count < 500; count++) expect(endless.next().done).toBe(false)
    expect([...generateMessages({ seed: 1, messages: 1, tenants: 1, largeBytes: 1 })]).toHaveLength(1)
  })
})

describe('messages read from a file', () => {
  const messages = [...generateMessages({ seed: 4, messages: 400, tenants: 3 })]
  const hard = '{"a": 12345678901234567890.50, "b":[1e400,{ "c":"\u2028 \\u00e9 }" }],"a":0}'
  const expected = [
    ...messages,
    {
      tenantId: '11111111-1111-4111-8111-111111111111',
      conversationId: '22222222-2222-4222-8222-222222222222',
      seq: 0,
      role: 'user',
      content: 'line\u2028 "x" 東',
      metadata: hard,
    },
  ]
  const lines = expected.map(line)
  let folder = ''
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'lighter-messages-'))
  })
  afterAll(() => rm(folder, { recursive: true }))

  async function read(name: string, content: string | Buffer): Promise<DemoMessage[]> {
    await writeFile(join(folder, name), content)
    const found: DemoMessage[] = []
    for await (const message of readMessages(join(folder, name))) found.push(message)
    return found
  }

  test('plain: each line is a message, its metadata to the character', async () => {
    expect(await read('plain.jsonl', lines.join('\n'))).toEqual(expected)
  })

  test('empty lines and Windows line ends are skipped', async () => {
    expect(await read('windows.jsonl', `\r\n${lines.join('\r\n\r\n')}\r\n`)).toEqual(expected)
    expect(await read('empty.jsonl', '')).toEqual([])
  })

  test('gzip and zstd are told by content, whatever the name, in one frame or in many', async () => {
    const text = `${lines.join('\n')}\n`
    expect(await read('one.gz', gzipSync(text))).toEqual(expected)
    expect(await read('one.jsonl', zstdCompressSync(text))).toEqual(expected)
    expect(await read('many.gz', Buffer.concat(lines.map(each => gzipSync(`${each}\n`))))).toEqual(expected)
    expect(await read('many.zst', Buffer.concat(lines.map(each => zstdCompressSync(`${each}\n`))))).toEqual(
      expected,
    )
  })

  test('a truncated compressed file fails, naming the file', async () => {
    const whole = gzipSync(lines.join('\n'))
    await expect(read('cut.gz', whole.subarray(0, whole.length / 2))).rejects.toThrow(
      /cut\.gz: unexpected end of file/,
    )
    const framed = zstdCompressSync(lines.join('\n'))
    await expect(read('cut.zst', framed.subarray(0, framed.length / 2))).rejects.toThrow(
      /cut\.zst: unexpected end of file/,
    )
  })

  test.each([
    [
      '{"tenant_id":"11111111-1111-4111-8111-111111111111","conversation_id":"22222222-2222-4222-8222-222222222222","seq":"0","role":"user","content":"","metadata":{}}',
      'field "seq": a whole number was expected',
    ],
    [
      '{"tenant_id":7,"conversation_id":"22222222-2222-4222-8222-222222222222","seq":0,"role":"user","content":"","metadata":{}}',
      'field "tenant_id": a uuid was expected',
    ],
    [
      '{"tenant_id":"11111111-1111-4111-8111-111111111111","conversation_id":"22222222-2222-4222-8222-222222222222","seq":0,"role":"user","content":"a\tb","metadata":{}}',
      'field "content": Bad control character',
    ],
    [
      '{"tenant_id":"11111111-1111-4111-8111-111111111111","conversation_id":"22222222-2222-4222-8222-222222222222","seq":0,"role":"user","content":""}',
      'field "metadata": it is missing',
    ],
    [
      '{"tenant_id":"11111111-1111-4111-8111-111111111111","conversation_id":"22222222-2222-4222-8222-222222222222","seq":0,"role":"user","content":"","metadata":[]}',
      'field "metadata": an object was expected',
    ],
    [
      '{"tenant_id":"11111111-1111-4111-8111-111111111111","conversation_id":"22222222-2222-4222-8222-222222222222","seq":0,"role":"user","content":"","metadata":{"a":[}}',
      'malformed JSON',
    ],
    [`${' '.repeat(100)}not json`, 'malformed JSON at character 100'],
  ])('a bad line is named with its file, number and field: %s', async (bad, problem) => {
    const first = lines[0] ?? ''
    const reading = read('bad.jsonl', `${first}\n\n${bad}\n${first}\n`)
    await expect(reading).rejects.toMatchObject({ code: 'bad_message_line' })
    await expect(reading).rejects.toThrow(`bad.jsonl, line 3: ${problem}`)
  })

  test('text that is not UTF-8 is a bad line, not a changed one', async () => {
    const broken = Buffer.from(`${lines[0]}`.replace('"role":"user"', '"role":"us\u00e9r"'), 'latin1')
    await expect(read('latin1.jsonl', broken)).rejects.toThrow('latin1.jsonl, line 1: ')
  })
})

function line({ tenantId, conversationId, seq, role, content, metadata }: DemoMessage): string {
  const head = JSON.stringify({ tenant_id: tenantId, conversation_id: conversationId, seq, role, content })
  return `${head.slice(0, -1)},"metadata":${metadata}}`
}

function textOf(message: DemoMessage, key: string): string[] {
  const raw = splitObject(message.metadata).get(key)
  return raw === undefined ? [] : [raw]
}

function quantile(sorted: number[], part: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? 0
}

/** Bytes as `jsonb::text`, which the measured sizes are of: a space after each comma and colon. */
function jsonbLength(text: string): number {
  const outside = text.replace(/"(\\.|[^"\\])*"/g, '')
  return Buffer.byteLength(text) + (outside.match(/[,:]/g)?.length ?? 0)
}
