import assert from 'node:assert/strict'
import { describe, expect, test } from 'vitest'
import { checkJson } from '../../src/artifacts/json-check.ts'
import { mergeSteps } from '../../src/artifacts/layers.ts'
import {
  joinObject,
  MalformedJsonError,
  rawKind,
  splitArray,
  splitObject,
  uuidOf,
} from '../../src/artifacts/raw-json.ts'
import { atOnce } from '../../src/artifacts/steps.ts'

/** As hydrating lays a row's own members over its payload. */
function overlay(base: string, own: Map<string, string>): string {
  const layers = [joinObject(own), base].map(text => ({
    opened: { text, metadataRef: null, fieldRef: null, hasField: false },
    field: null,
    dropped: new Set<string>(),
  }))
  return atOnce(mergeSteps(layers, null, 1000))
}

type Json = null | boolean | number | string | Json[] | { [key: string]: Json }

const hugeNumbers = [
  '12345678901234567890.5',
  '1e400',
  '-1E-400',
  '-0',
  '0.10',
  '1.0',
  `1${'0'.repeat(131_071)}`,
]

const exactValues: [what: string, raw: string][] = [
  ...hugeNumbers.map((raw): [string, string] => [`number ${raw.slice(0, 30)}`, raw]),
  ['literals', 'true'],
  ['unicode escapes', String.raw`"\u0041\u00e9\ud83d\ude00"`],
  ['a surrogate pair', '"😀"'],
  ['a lone surrogate', String.raw`"\ud83d"`],
  ['an empty string', '""'],
  ['an escaped quote', String.raw`"a\"b"`],
  ['an escaped quote at the end', String.raw`"a\""`],
  ['an escaped backslash before the closing quote', String.raw`"a\\"`],
  ['a backslash and a quote, both escaped, at the end', String.raw`"\\\""`],
  ['nothing but escaped backslashes', `"${'\\\\'.repeat(1001)}"`],
  ['brackets, colons and commas in a string', '"}],{[:,"'],
  ['an empty object', '{}'],
  ['an empty array', '[ ]'],
  ['numbers inside an array', '[1e400, 12345678901234567890.5,-0]'],
  ['brackets in strings inside containers', String.raw`{"}": ["]", "\"]}", {"a\\": "{["}]}`],
  ['line and paragraph separators', '"\u2028\u2029"'],
  ['spaces that JSON does not know, in a string', '"\u00a0\ufeff"'],
]

describe('splitObject', () => {
  test.each(exactValues)('keeps %s byte-exact', (_, raw) => {
    expect([...splitObject(`{"a": ${raw}, "b": 1}`)]).toEqual([
      ['a', raw],
      ['b', '1'],
    ])
    expect([...splitObject(`{"a":${raw}}`)]).toEqual([['a', raw]])
  })

  test('members come in the order of the text', () => {
    expect([...splitObject('{"b": 1, "2": 2, "a": 3, "1": 4}').keys()]).toEqual(['b', '2', 'a', '1'])
  })

  test('an empty object has no members', () => {
    expect(splitObject('{}').size).toBe(0)
    expect(splitObject(' {\n\t} \r').size).toBe(0)
  })

  test('space between tokens is left out, space inside values stays', () => {
    const text = ' \n{\t"a" \r:\n [ 1 ,\t2 ] , "b"\t: " x " ,"c": 1e400 \n} \t'
    expect([...splitObject(text)]).toEqual([
      ['a', '[ 1 ,\t2 ]'],
      ['b', '" x "'],
      ['c', '1e400'],
    ])
  })

  test('keys are decoded', () => {
    const text = String.raw`{"a\u0062": 1, "\"": 2, "\\": 3, "": 4, "\ud83d\ude00": 5, "😀!": 6, "\/\n": 7, "{": 8}`
    expect([...splitObject(text).keys()]).toEqual(['ab', '"', '\\', '', '😀', '😀!', '/\n', '{'])
  })

  test('of a key that occurs twice the last wins, however it is spelled', () => {
    expect([...splitObject(String.raw`{"ab": 1e400, "c": 2, "a\u0062": 1e401}`)]).toEqual([
      ['ab', '1e401'],
      ['c', '2'],
    ])
  })

  test('__proto__ and constructor are keys like any other', () => {
    const text = '{"__proto__": {"x": 1}, "constructor": 2, "toString": 3}'
    expect([...splitObject(text)]).toEqual([
      ['__proto__', '{"x": 1}'],
      ['constructor', '2'],
      ['toString', '3'],
    ])
    expect(joinObject(splitObject(text))).toBe(text)
  })

  test.each([
    ['arrays', '[', ']'],
    ['objects', '{"a":', '}'],
  ])('100,000 nested %s do not overflow the stack', (_, open, close) => {
    const deep = `${open.repeat(100_000)}1e400${close.repeat(100_000)}`
    expect(splitObject(`{"deep": ${deep}, "b": 1}`).get('deep') === deep).toBe(true)
    const rest = deep.slice(open.length, -1)
    if (open !== '[') {
      // Laid out as Postgres does, also where the payload was not.
      expect(overlay(deep, new Map([['z', '1']])) === `{"a": ${rest}, "z": 1}`).toBe(true)
    }
    expect(() => splitObject(`{"deep": ${deep.slice(0, -1)}`)).toThrow(MalformedJsonError)
  })
})

describe('malformed text', () => {
  const notObjects: [text: string, offset: number][] = [
    ['', 0],
    ['  ', 2],
    ['null', 0],
    [' []', 1],
    ['"{}"', 0],
    ['\ufeff{}', 0],
    ['\u00a0{}', 0],
  ]
  const broken: [text: string, offset: number][] = [
    ['{', 1],
    ['{"a', 1],
    ['{"a"', 4],
    ['{"a":', 5],
    ['{"a": ', 6],
    ['{"a": 1', 7],
    ['{"a": 1,', 8],
    ['{"a": 1,}', 8],
    ['{,}', 1],
    ['{, "a": 1}', 1],
    ['{"a": 1,, "b": 2}', 8],
    ['{"a" 1}', 5],
    ['{"a":: 1}', 5],
    ['{"a"}', 4],
    ['{"a": }', 6],
    ['{"a": , "b": 1}', 6],
    ['{a: 1}', 1],
    ["{'a': 1}", 1],
    ['{1: 1}', 1],
    ['{"a": 1 "b": 2}', 8],
    ['{"a": 1"b": 2}', 7],
    ['{"a": "x""b": 2}', 9],
    ['{"a": 1 2}', 8],
    ['{"a": [1] [2]}', 10],
    ['{"a": 1]', 7],
    ['{"a": 1}}', 8],
    ['{"a": 1} x', 9],
    ['{} {}', 3],
    ['{}\u00a0', 2],
    ['{"a":\u00a01}', 5],
    ['{"a": 1\u0000}', 7],
    ['{"a": [1}', 8],
    ['{"a": {"b": 1]}', 13],
    ['{"a": [{]}]}', 8],
    ['{"a": [}', 7],
    ['{"a": [1, 2}', 11],
    ['{"a": [1, 2', 6],
    ['{"a": {"b": "c}}', 12],
    ['{"a": "x}', 6],
    [String.raw`{"a": "x\"}`, 6],
    [String.raw`{"a": "x\\\"}`, 6],
    [String.raw`{"a\": 1}`, 1],
    [String.raw`{"\x": 1}`, 1],
    [String.raw`{"\u12": 1}`, 1],
    ['{"a\nb": 1}', 1],
    ['{"a": tru}', 6],
    ['{"a": truee}', 10],
    ['{"a": True}', 6],
    ['{"a": undefined}', 6],
    ['{"a": NaN}', 6],
    ['{"a": -Infinity}', 7],
    ['{"a": -}', 7],
    ['{"a": +1}', 6],
    ['{"a": --1}', 7],
    ['{"a": 01}', 7],
    ['{"a": .5}', 6],
    ['{"a": 1.}', 8],
    ['{"a": 1e}', 8],
    ['{"a": 1e+}', 9],
    ['{"a": 1.5.5}', 9],
    ['{"a": 0x10}', 7],
    ['{"a": 1_000}', 7],
  ]

  test.each([...notObjects, ...broken])('splitObject(%j) throws at %i', (text, offset) => {
    expect(() => splitObject(text)).toThrow(MalformedJsonError)
    expect(() => splitObject(text)).toThrow(expect.objectContaining({ code: 'malformed_json', offset }))
  })

  test.each(broken)('overlay on %j throws rather than guess', (text, offset) => {
    expect(() => overlay(text, new Map([['z', '1']]))).toThrow(expect.objectContaining({ offset }))
  })

  test.each([
    '[1, 2',
    '[1, 2}',
    '[1] x',
    '[1, [2]',
    '["]',
    '"abc',
    String.raw`"abc\"`,
    '"a" "b"',
    'nul',
    'nullx',
    '1 2',
    '',
  ])('overlay on %j throws as well', text => {
    expect(() => overlay(text, new Map([['z', '1']]))).toThrow(MalformedJsonError)
  })

  test('whatever is cut off a text, the rest is refused', () => {
    const text = String.raw`{"a": [1, {"b\\": "c\"}"}], "d": -1.5e+10, "e": "\\", "f": false, "g": {}}`
    expect(splitObject(text).size).toBe(5)
    for (let length = 0; length < text.length; length++) {
      expect(() => splitObject(text.slice(0, length)), text.slice(0, length)).toThrow(MalformedJsonError)
    }
  })
})

describe('joinObject', () => {
  test('is laid out as jsonb::text', () => {
    expect(
      joinObject([
        ['a', '1'],
        ['b', '[2]'],
      ]),
    ).toBe('{"a": 1, "b": [2]}')
    expect(joinObject([])).toBe('{}')
  })

  test('keys are escaped, values are not touched', () => {
    const raw = String.raw`"\u0041\/"`
    expect(joinObject([['"\\\n\u0001é😀', raw]])).toBe(String.raw`{"\"\\\n\u0001é😀": ${raw}}`)
  })

  test('text of jsonb comes back as it was', () => {
    const text = String.raw`{"a": 12345678901234567890.5, "b": [1, {"c": "\""}], "é\t": {}, "": null}`
    expect(joinObject(splitObject(text))).toBe(text)
  })
})

describe('overlay', () => {
  const own = new Map([
    ['b', '1e400'],
    ['c', '-0'],
  ])

  test.each([
    [
      'an object: own members win, the others stay',
      '{"a": 1e401, "b": [2]}',
      '{"a": 1e401, "b": 1e400, "c": -0}',
    ],
    ['an object under another spelling of its key', String.raw`{"\u0062": 2}`, '{"b": 1e400, "c": -0}'],
    ['an empty object', ' { } ', '{"b": 1e400, "c": -0}'],
  ])('on %s', (_, base, result) => {
    expect(overlay(base, own)).toBe(result)
  })

  test.each(['[1e401, "]"]', '[]', ' [ \n] ', 'null', ' false\n', '12345678901234567890.5', '"[\u00a0"'])(
    'on %j, which is no object, is refused',
    base => {
      expect(() => overlay(base, own)).toThrow(expect.objectContaining({ code: 'pointer_not_mergeable' }))
    },
  )

  test.each(['{"a":1,  "a":2}', ' [1] ', 'null', '"x"'])(
    'with nothing of its own leaves %j exactly as it is',
    base => {
      expect(overlay(base, new Map())).toBe(base)
    },
  )

  test('takes __proto__ from either side', () => {
    expect(overlay('{"__proto__": 1, "a": 2}', new Map([['__proto__', '3']]))).toBe(
      '{"__proto__": 3, "a": 2}',
    )
  })

  test('changes neither the own members nor what was split', () => {
    const before = [...own]
    overlay('{"a": 1}', own)
    expect([...own]).toEqual(before)
  })
})

describe('splitArray', () => {
  test.each(exactValues)('keeps %s byte-exact', (_, raw) => {
    expect(splitArray(`[${raw}]`)).toEqual([raw])
    expect(splitArray(` [ ${raw} ,\n1,${raw}\t] `)).toEqual([raw, '1', raw])
  })

  test.each(['[]', ' [ ] ', '[\n]\r\n'])('%j has no elements', text => {
    expect(splitArray(text)).toEqual([])
  })

  test.each<[text: string, offset: number]>([
    ['', 0],
    ['{}', 0],
    [' "[]"', 1],
    ['[', 1],
    ['[,]', 1],
    ['[1,]', 3],
    ['[,1]', 1],
    ['[1,,2]', 3],
    ['[1 2]', 3],
    ['[1', 2],
    ['[1}', 2],
    ['[1]]', 3],
    ['[] x', 3],
    ['[1] [2]', 4],
    ['["a]', 1],
    ['[[1]', 4],
    ['[nul]', 1],
    ['[01]', 2],
    ['[\u00a01]', 1],
  ])('%j is refused at %i', (text, offset) => {
    expect(() => splitArray(text)).toThrow(expect.objectContaining({ code: 'malformed_json', offset }))
  })

  test('100,000 nested arrays do not overflow the stack', () => {
    const deep = `${'['.repeat(100_000)}${']'.repeat(100_000)}`
    expect(splitArray(`[${deep}, 1]`)).toEqual([deep, '1'])
  })
})

describe('checkJson', () => {
  test.each(exactValues)('takes %s, by itself and inside', (_, raw) => {
    for (const text of [raw, ` ${raw}\n`, `[${raw}, ${raw}]`, `{"a": ${raw}, "b": [${raw}]}`])
      checkJson(text, 10)
  })

  test.each<[text: string, offset: number]>([
    ['', 0],
    [' ', 1],
    ['\ufeff{}', 0],
    ['\u00a01', 0],
    ['1\u00a0', 1],
    ['1 2', 2],
    ['nul', 0],
    ['truefalse', 4],
    ['NaN', 0],
    ['-', 1],
    ['+1', 0],
    ['01', 1],
    ['.5', 0],
    ['1.', 2],
    ['1e', 2],
    ['0x1', 1],
    ['"', 0],
    ['"a', 0],
    ['"a\n"', 2],
    ['"\t"', 1],
    ['"\u0000"', 1],
    ['"\u001f"', 1],
    [String.raw`"\x"`, 2],
    [String.raw`"\'"`, 2],
    [String.raw`"\u12g4"`, 2],
    [String.raw`"\u12"`, 2],
    [String.raw`"\U0041"`, 2],
    [String.raw`"\"`, 0],
    ['[', 1],
    ['[1', 2],
    ['[1,', 3],
    ['[1,]', 3],
    ['[,]', 1],
    ['[1}', 2],
    ['[]]', 2],
    [']', 0],
    ['{', 1],
    ['{"a"}', 4],
    ['{"a":}', 5],
    ['{"a":1,}', 7],
    ['{"a":1]', 6],
    ['{"a" 1}', 5],
    ['{a:1}', 1],
    ['{1:1}', 1],
    ['{"a\n":1}', 3],
    [String.raw`{"\x":1}`, 3],
    ['{"a":1 "b":2}', 7],
    ['{"a":"b\u0001"}', 7],
    ['[{"a":[1,{"b":tru}]}]', 14],
    ['[{"a":["b\n"]}]', 9],
    ['{} {}', 3],
    ["{'a':1}", 1],
    ['/* */1', 0],
  ])('%j is refused at %i', (text, offset) => {
    expect(() => checkJson(text, 10)).toThrow(expect.objectContaining({ code: 'malformed_json', offset }))
  })

  test.each([
    String.raw`"\"\\\/\b\f\n\r\t\u00e9\uD83D"`,
    '"\u007f\u2028"',
    '"\ud83d"',
    '{"a":1,"a":2}',
    '{"":{}}',
  ])('%j is taken', text => {
    checkJson(text, 10)
    JSON.parse(text)
  })

  test('counts arrays and objects as levels, empty ones too', () => {
    for (const [open, close] of [
      ['[', ']'],
      ['{"a":', '}'],
    ] as const) {
      const nested = (depth: number) => `${open.repeat(depth)}1${close.repeat(depth)}`
      checkJson(nested(5), 5)
      expect(() => checkJson(nested(6), 5)).toThrow(/nested deeper than 5/)
    }
    checkJson('[[[[[]]]]]', 5)
    expect(() => checkJson('[[[[[{}]]]]]', 5)).toThrow(/nested deeper than 5/)
    checkJson('1', 0)
    expect(() => checkJson('[]', 0)).toThrow(/nested deeper/)
    // Beside each other is not inside each other.
    checkJson(`[${'[[]],'.repeat(1000)}[[]]]`, 3)
    checkJson(`[${'{"a":{}},'.repeat(1000)}{}]`, 3)
  })

  test('a million levels are refused, or checked, without a stack of their own', () => {
    const deep = `${'['.repeat(1_000_000)}${']'.repeat(1_000_000)}`
    expect(() => checkJson(deep, 500)).toThrow(/nested deeper than 500/)
    checkJson(deep, Number.POSITIVE_INFINITY)
  })
})

describe('rawKind', () => {
  test.each([
    ['{}', 'object'],
    [' \n\t\r[1]', 'array'],
    ['""', 'string'],
    ['"null"', 'string'],
    ['0', 'number'],
    ['-0', 'number'],
    [' 1e400 ', 'number'],
    ['-12345678901234567890.5E-3', 'number'],
    ['true', 'boolean'],
    ['false ', 'boolean'],
    ['null', 'null'],
  ] as const)('%j is of kind %s', (text, kind) => {
    expect(rawKind(text)).toBe(kind)
  })

  test.each([
    '',
    ' ',
    'x',
    'nul',
    'nullx',
    'truefalse',
    '1 2',
    '1,',
    '-',
    '01',
    '.5',
    '}',
    ']',
    ':',
    '\ufeff1',
  ])('%j is of none', text => {
    expect(() => rawKind(text)).toThrow(MalformedJsonError)
  })
})

describe('uuidOf', () => {
  const id = '0192f0c1-2b3a-7c4d-8e5f-0123456789ab'

  test('a canonical uuid, in lower case', () => {
    expect(uuidOf(`"${id}"`)).toBe(id)
    expect(uuidOf(`"${id.toUpperCase()}"`)).toBe(id)
  })

  test.each([
    undefined,
    '',
    'null',
    '""',
    id,
    `'${id}'`,
    `"${id}`,
    `"${id} "`,
    `"${id}"\n`,
    `"${id}\n"`,
    ` "${id}"`,
    `"{${id}}"`,
    `"${id}0"`,
    `"${id.slice(1)}"`,
    `"${id.replaceAll('-', '')}"`,
    `"${id.replace('0', 'g')}"`,
    `"${id.replace('-', '_')}"`,
    `["${id}"]`,
    `"urn:uuid:${id}"`,
  ])('%j is none', raw => {
    expect(uuidOf(raw)).toBeNull()
  })
})

describe('random values agree with JSON.parse', () => {
  const rounds = 2_000

  test('splitObject finds the members, joinObject puts them back', () => {
    for (let seed = 1; seed <= rounds; seed++) {
      const random = seededRandom(seed)
      const entries = randomEntries(random, 4)
      const text = write(Object.fromEntries(entries), random)
      const members = splitObject(text)
      const parsed: Record<string, Json> = JSON.parse(text)
      assert.equal(members.size, Object.keys(parsed).length, text)
      for (const [key, raw] of members) {
        assert.ok(Object.hasOwn(parsed, key), text)
        assert.deepEqual(JSON.parse(raw), parsed[key], text)
        assert.equal(raw, raw.trim(), text)
        assert.ok(text.includes(raw), text)
      }
      const joined = joinObject(members)
      assert.deepEqual(JSON.parse(joined), parsed, text)
      assert.deepEqual([...splitObject(joined)], [...members], text)
    }
  })

  test('of repeated keys too', () => {
    for (let seed = 1; seed <= rounds; seed++) {
      const random = seededRandom(seed)
      const entries = [...randomEntries(random, 2), ...randomEntries(random, 2)]
      const written = entries.map(([key, value]) => `${write(key, random)}:${write(value, random)}`)
      const text = `{${written.join(',')}}`
      const values = [...splitObject(text)].map(([key, raw]): [string, Json] => [key, JSON.parse(raw)])
      assert.deepEqual(Object.fromEntries(values), JSON.parse(text), text)
      assert.deepEqual([...splitObject(text).keys()], [...new Set(entries.map(([key]) => key))], text)
    }
  })

  test('overlay is jsonb concatenation', () => {
    for (let seed = 1; seed <= rounds; seed++) {
      const random = seededRandom(seed)
      const base = randomValue(random, 3)
      const ownEntries = randomEntries(random, 2)
      const own = new Map(ownEntries.map(([key, value]): [string, string] => [key, write(value, random)]))
      const text = write(base, random)
      if (own.size > 0 && rawKind(text) !== 'object') {
        assert.throws(() => overlay(text, own), { code: 'pointer_not_mergeable' })
        continue
      }
      const result = overlay(text, own)
      if (own.size === 0) assert.equal(result, text)
      else assert.deepEqual(JSON.parse(result), concatenate(base, Object.fromEntries(ownEntries)), text)
    }
  })

  test('rawKind names what JSON.parse gives', () => {
    for (let seed = 1; seed <= rounds; seed++) {
      const random = seededRandom(seed)
      const value = randomValue(random, 2)
      const kind = value === null ? 'null' : Array.isArray(value) ? 'array' : typeof value
      assert.equal(rawKind(write(value, random)), kind)
    }
  })

  test('splitArray finds the elements', () => {
    for (let seed = 1; seed <= rounds; seed++) {
      const random = seededRandom(seed)
      const values = Array.from({ length: below(random, 5) }, () => randomValue(random, 3))
      const text = write(values, random)
      const elements = splitArray(text)
      assert.deepEqual(
        elements.map(raw => JSON.parse(raw)),
        JSON.parse(text),
        text,
      )
      for (const raw of elements) assert.equal(raw, raw.trim(), text)
    }
  })

  test('checkJson takes a text exactly when JSON.parse does', () => {
    let taken = 0
    let refused = 0
    for (let seed = 1; seed <= rounds * 10; seed++) {
      const random = seededRandom(seed)
      let text = write(randomValue(random, 3), random)
      for (let times = below(random, 3); times > 0 && text.length > 0; times--) text = damage(text, random)
      const isJson = parses(text)
      let found: unknown = null
      try {
        checkJson(text, Number.POSITIVE_INFINITY)
      } catch (error) {
        found = error
      }
      assert.equal(found === null, isJson, JSON.stringify(text))
      if (isJson) taken++
      else {
        assert.ok(found instanceof MalformedJsonError, text)
        assert.ok(found.offset >= 0 && found.offset <= text.length, JSON.stringify(text))
        refused++
      }
    }
    expect(taken).toBeGreaterThan(rounds)
    expect(refused).toBeGreaterThan(rounds)
  })

  test('checkJson agrees with JSON.parse on texts of nothing but what breaks scanners', () => {
    const alphabet = [
      '"',
      '\\',
      '{',
      '}',
      '[',
      ']',
      ',',
      ':',
      ' ',
      '0',
      '1',
      '-',
      '.',
      'e',
      '+',
      'u',
      'n',
      'null',
      '"a"',
      '\n',
      '"a":',
    ]
    let taken = 0
    for (let seed = 1; seed <= rounds * 50; seed++) {
      const random = seededRandom(seed)
      const text = Array.from(
        { length: 1 + below(random, 7) },
        () => alphabet[below(random, alphabet.length)],
      ).join('')
      let refused = false
      try {
        checkJson(text, Number.POSITIVE_INFINITY)
      } catch {
        refused = true
      }
      const isJson = parses(text)
      assert.equal(!refused, isJson, JSON.stringify(text))
      if (isJson) taken++
    }
    expect(taken).toBeGreaterThan(rounds)
  })

  test('a damaged text is refused or, where still JSON, split as JSON.parse sees it', () => {
    let refused = 0
    let stillJson = 0
    for (let seed = 1; seed <= rounds * 5; seed++) {
      const random = seededRandom(seed)
      const text = damage(write(Object.fromEntries(randomEntries(random, 3)), random), random)
      const parsed = parseOrUndefined(text)
      let members: Map<string, string> | undefined
      try {
        members = splitObject(text)
      } catch (error) {
        assert.ok(error instanceof MalformedJsonError, text)
        assert.ok(error.offset >= 0 && error.offset <= text.length, text)
        refused++
      }
      if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) continue
      stillJson++
      assert.ok(members !== undefined, `refused, though it is JSON: ${text}`)
      const values = [...members].map(([key, raw]): [string, Json] => [key, JSON.parse(raw)])
      assert.deepEqual(Object.fromEntries(values), parsed, text)
    }
    expect(refused).toBeGreaterThan(rounds)
    expect(stillJson).toBeGreaterThan(rounds / 2)
  })
})

type Random = () => number

/** mulberry32: the same numbers for the same seed, so that a failure can be run again. */
function seededRandom(seed: number): Random {
  let state = Math.imul(seed, 0x9e3779b1)
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

function below(random: Random, limit: number): number {
  return Math.floor(random() * limit)
}

/** What breaks a scanner: quotes, backslashes, brackets, separators, spaces, characters of two units. */
const pieces = [
  '"',
  '\\',
  '{',
  '}',
  '[',
  ']',
  ',',
  ':',
  ' ',
  '\n',
  '\u0000',
  '\u2028',
  'é',
  '😀',
  'a',
  'u0022',
  '1',
]
const oddKeys = ['__proto__', 'constructor', '', 'a', 'b', '1']
const numbers = [0, -0, 1, -1, 0.1, 1e21, 1e-7, 5e-324, 1.7976931348623157e308, 2 ** 53]

function randomString(random: Random): string {
  return Array.from({ length: below(random, 8) }, () => pieces[below(random, pieces.length)]).join('')
}

function randomEntries(random: Random, depth: number): [string, Json][] {
  return Array.from({ length: below(random, 5) }, () => [
    random() < 0.5 ? (oddKeys[below(random, oddKeys.length)] ?? '') : randomString(random),
    randomValue(random, depth - 1),
  ])
}

function randomValue(random: Random, depth: number): Json {
  const choice = below(random, depth > 0 ? 7 : 5)
  if (choice === 0) return null
  if (choice === 1) return random() < 0.5
  if (choice === 2) return numbers[below(random, numbers.length)] ?? random()
  if (choice <= 4) return randomString(random)
  if (choice === 5) return Array.from({ length: below(random, 5) }, () => randomValue(random, depth - 1))
  return Object.fromEntries(randomEntries(random, depth))
}

/** JSON text of a value with space anywhere it may be, and escapes where none are needed. */
function write(value: Json, random: Random): string {
  const space = () => [' ', '\n', '\t', '\r\n', '', '', '', ''][below(random, 8)] ?? ''
  const list = (items: string[]) => items.map(item => `${space()}${item}${space()}`).join(',') || space()
  // Only characters that JSON.stringify leaves alone and that are part of no escape of its own.
  const writeString = (text: string) =>
    JSON.stringify(text).replace(/[[\]{}é]/g, found => (random() < 0.3 ? unicodeEscape(found) : found))
  const writeAny = (any: Json): string => {
    if (typeof any === 'string') return writeString(any)
    if (Object.is(any, -0)) return '-0'
    if (Array.isArray(any)) return `[${list(any.map(writeAny))}]`
    if (typeof any !== 'object' || any === null) return JSON.stringify(any)
    const members = Object.entries(any)
    return `{${list(members.map(([key, of]) => `${writeString(key)}${space()}:${space()}${writeAny(of)}`))}}`
  }
  return `${space()}${writeAny(value)}${space()}`
}

function unicodeEscape(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`
}

function concatenate(base: Json, own: { [key: string]: Json }): Json {
  if (Array.isArray(base)) return [...base, own]
  if (typeof base !== 'object' || base === null) return [base, own]
  return Object.fromEntries([...Object.entries(base), ...Object.entries(own)])
}

/** One character removed, put in, doubled or cut off after. */
function damage(text: string, random: Random): string {
  const at = below(random, text.length)
  const choice = below(random, 4)
  if (choice === 0) return text.slice(0, at) + text.slice(at + 1)
  if (choice === 1) return text.slice(0, at) + (pieces[below(random, pieces.length)] ?? '') + text.slice(at)
  if (choice === 2) return text.slice(0, at + 1) + text.slice(at)
  return text.slice(0, at)
}

function parseOrUndefined(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function parses(text: string): boolean {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}
