// JSON text taken apart and put together without being parsed: values stay the exact characters they were,
// so numbers beyond a double (12345678901234567890.5, 1e400) survive. One pass, no recursion.

export type RawKind = 'object' | 'array' | 'string' | 'number' | 'boolean' | 'null'

/** The text is not JSON where we had to look at it. `offset` counts UTF-16 units from its beginning. */
export class MalformedJsonError extends Error {
  readonly code = 'malformed_json'
  readonly offset: number

  constructor(what: string, offset: number) {
    super(`malformed JSON at character ${offset}: ${what}`)
    this.name = 'MalformedJsonError'
    this.offset = offset
  }
}

export const quote = 0x22
const plus = 0x2b
export const comma = 0x2c
const minus = 0x2d
const dot = 0x2e
const zero = 0x30
const nine = 0x39
export const colon = 0x3a
export const openBracket = 0x5b
export const backslash = 0x5c
export const closeBracket = 0x5d
export const openBrace = 0x7b
export const closeBrace = 0x7d

/**
 * What a JSON text is. Objects, arrays and strings are told by their first character, however long they are;
 * the short kinds are checked whole.
 * @throws {MalformedJsonError}
 */
export function rawKind(text: string): RawKind {
  const start = skipSpace(text, 0)
  const first = text.charCodeAt(start)
  if (first === openBrace) return 'object'
  if (first === openBracket) return 'array'
  if (first === quote) return 'string'
  const scalar = wholeValue(text)
  if (scalar === 'null') return 'null'
  return scalar === 'true' || scalar === 'false' ? 'boolean' : 'number'
}

/**
 * Top-level members of an object's text, in order: decoded key, exact raw text of the value. Of a key that
 * occurs twice the last wins, as in jsonb. In values that are strings, objects or arrays only quotes, escapes
 * and brackets are followed, to find their ends.
 * @param maxMembers more of them are refused as soon as they are met
 * @throws {MalformedJsonError} not an object, or broken at its top level
 */
export function splitObject(text: string, maxMembers = Number.POSITIVE_INFINITY): Map<string, string> {
  const members = new Map<string, string>()
  const reader = new MemberReader(text)
  while (reader.next()) {
    members.set(reader.key, reader.raw())
    if (members.size > maxMembers)
      throw new MalformedJsonError(`more than ${maxMembers} members`, reader.start)
  }
  return members
}

/** Walks over the top-level members of an object's text, one at a time, and copies nothing of it. */
export class MemberReader {
  /** Decoded key of the member that `next` came to. */
  key = ''
  /** Where its key begins and ends, where its value begins, and where it ends. */
  start = 0
  keyEnd = 0
  valueStart = 0
  end = 0
  readonly #text: string
  #begun = false

  constructor(text: string) {
    this.#text = text
  }

  /** @returns false at the end of the object. @throws {MalformedJsonError} as `splitObject` */
  next(): boolean {
    const text = this.#text
    let at = this.#begun ? this.#pastComma() : this.#pastBrace()
    if (at === null) return false
    if (text.charCodeAt(at) !== quote) throw new MalformedJsonError('a key was expected', at)
    this.start = at
    this.keyEnd = stringEnd(text, at)
    this.key = decodeKey(text.slice(at, this.keyEnd), at)
    at = skipSpace(text, this.keyEnd)
    if (text.charCodeAt(at) !== colon) throw new MalformedJsonError('":" was expected', at)
    this.valueStart = skipSpace(text, at + 1)
    this.end = valueEnd(text, this.valueStart)
    return true
  }

  /** The exact text of its value. */
  raw(): string {
    return this.#text.slice(this.valueStart, this.end)
  }

  /** Whether it is laid out as jsonb::text does: one space after the colon, and none else. */
  isPlain(): boolean {
    return this.valueStart === this.keyEnd + 2 && this.#text.charCodeAt(this.keyEnd + 1) === 0x20
  }

  #pastBrace(): number | null {
    const text = this.#text
    this.#begun = true
    const brace = skipSpace(text, 0)
    if (text.charCodeAt(brace) !== openBrace) throw new MalformedJsonError('not an object', brace)
    const at = skipSpace(text, brace + 1)
    if (text.charCodeAt(at) !== closeBrace) return at
    expectEnd(text, at + 1)
    return null
  }

  #pastComma(): number | null {
    const text = this.#text
    const at = skipSpace(text, this.end)
    const next = text.charCodeAt(at)
    if (next === comma) return skipSpace(text, at + 1)
    if (next !== closeBrace) throw new MalformedJsonError('"," or "}" was expected', at)
    expectEnd(text, at + 1)
    return null
  }
}

/** Walks over the elements of an array's text, one at a time, and copies nothing of it. */
export class ElementReader {
  /** Where the element that `next` came to begins, and where it ends. */
  start = 0
  end = 0
  readonly #text: string
  #begun = false

  constructor(text: string) {
    this.#text = text
  }

  /** @returns false at the end of the array. @throws {MalformedJsonError} as `splitArray` */
  next(): boolean {
    const text = this.#text
    let at = skipSpace(text, this.#begun ? this.end : 0)
    const code = text.charCodeAt(at)
    if (!this.#begun) {
      if (code !== openBracket) throw new MalformedJsonError('not an array', at)
    } else if (code !== comma && code !== closeBracket) {
      throw new MalformedJsonError('"," or "]" was expected', at)
    }
    if (code !== closeBracket) at = skipSpace(text, at + 1)
    if (text.charCodeAt(at) === closeBracket && (!this.#begun || code === closeBracket)) {
      expectEnd(text, at + 1)
      return false
    }
    this.#begun = true
    this.start = at
    this.end = valueEnd(text, at)
    return true
  }

  /** The exact text of it. */
  raw(): string {
    return this.#text.slice(this.start, this.end)
  }
}

/** Inverse of `splitObject`, laid out and escaped as Postgres's jsonb::text does. */
export function joinObject(members: Iterable<[string, string]>): string {
  const parts: string[] = []
  for (const [key, raw] of members) parts.push(`${JSON.stringify(key)}: ${raw}`)
  return `{${parts.join(', ')}}`
}

/**
 * Top-level elements of an array's text, each as its exact raw text.
 * @param maxElements what comes after so many is left out
 * @throws {MalformedJsonError}
 */
export function splitArray(text: string, maxElements = Number.POSITIVE_INFINITY): string[] {
  const elements: string[] = []
  const reader = new ElementReader(text)
  while (elements.length < maxElements && reader.next()) elements.push(reader.raw())
  return elements
}

const uuidLiteral = /^"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"$/i

/**
 * The uuid, in lower case, that a raw value spells as a JSON string; null for anything else. Spelled plainly,
 * that is: jsonb::text never escapes a hex digit.
 */
export function uuidOf(raw: string | undefined): string | null {
  if (raw === undefined || !uuidLiteral.test(raw)) return null
  return raw.slice(1, -1).toLowerCase()
}

/** The one value of a text, without the space around it. */
export function wholeValue(text: string): string {
  const start = skipSpace(text, 0)
  const end = valueEnd(text, start)
  expectEnd(text, end)
  return text.slice(start, end)
}

export function expectEnd(text: string, from: number): void {
  const rest = skipSpace(text, from)
  if (rest < text.length) throw new MalformedJsonError('the text goes on after its value', rest)
}

/** JSON knows four kinds of space; String.trim would take away more. */
export function skipSpace(text: string, from: number): number {
  let at = from
  for (;;) {
    const code = text.charCodeAt(at)
    if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return at
    at++
  }
}

/** Just past the value that begins at `start`. What may follow it is the caller's to say. */
export function valueEnd(text: string, start: number): number {
  const first = text.charCodeAt(start)
  if (first === quote) return stringEnd(text, start)
  if (first === openBrace || first === openBracket) return containerEnd(text, start)
  if (first === minus || (first >= zero && first <= nine)) return numberEnd(text, start)
  for (const literal of ['true', 'false', 'null']) {
    if (text.startsWith(literal, start)) return start + literal.length
  }
  throw new MalformedJsonError('a value was expected', start)
}

/**
 * Just past the closing quote of the string that begins at `start`. Jumps from quote to quote (a native
 * search, many times faster than a loop over characters); a quote after an odd run of backslashes is escaped.
 * The runs looked at lie between two quotes each, so no character is counted twice.
 */
function stringEnd(text: string, start: number): number {
  let from = start + 1
  for (;;) {
    const at = text.indexOf('"', from)
    if (at === -1) throw new MalformedJsonError('a string has no end', start)
    let backslashes = 0
    while (text.charCodeAt(at - 1 - backslashes) === backslash) backslashes++
    if (backslashes % 2 === 0) return at + 1
    from = at + 1
  }
}

/** Brackets are matched with a stack of our own: recursion would overflow on deep nesting. */
function containerEnd(text: string, start: number): number {
  const closers: number[] = []
  for (let at = start; at < text.length; at++) {
    const code = text.charCodeAt(at)
    if (code === quote) at = stringEnd(text, at) - 1
    else if (code === openBrace) closers.push(closeBrace)
    else if (code === openBracket) closers.push(closeBracket)
    else if (code === closeBrace || code === closeBracket) {
      if (closers.pop() !== code) throw new MalformedJsonError('a bracket closes another kind', at)
      if (closers.length === 0) return at + 1
    }
  }
  throw new MalformedJsonError('an object or array has no end', start)
}

function numberEnd(text: string, start: number): number {
  let at = text.charCodeAt(start) === minus ? start + 1 : start
  at = text.charCodeAt(at) === zero ? at + 1 : digitsEnd(text, at)
  if (text.charCodeAt(at) === dot) at = digitsEnd(text, at + 1)
  const exponent = text.charCodeAt(at)
  if (exponent === 0x45 || exponent === 0x65) {
    const sign = text.charCodeAt(at + 1)
    at = digitsEnd(text, sign === plus || sign === minus ? at + 2 : at + 1)
  }
  return at
}

/** Past one digit or more. Where there is none, there was no number and so no value at all. */
function digitsEnd(text: string, start: number): number {
  let at = start
  while (text.charCodeAt(at) >= zero && text.charCodeAt(at) <= nine) at++
  if (at === start) throw new MalformedJsonError('a value was expected', start)
  return at
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: a raw one makes a key invalid, which the parser says
const needsParser = /[\\\u0000-\u001f]/

/** Only ever a key: its escapes must be read to compare it, and it holds no number to lose. */
function decodeKey(literal: string, offset: number): string {
  // Most keys are plain, and a parser costs more than all the rest of the walk.
  if (!needsParser.test(literal)) return literal.slice(1, -1)
  try {
    return JSON.parse(literal)
  } catch {
    throw new MalformedJsonError('a key is not a valid string', offset)
  }
}
