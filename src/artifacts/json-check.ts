// Whether a text from outside is JSON from end to end.
import {
  backslash,
  closeBrace,
  closeBracket,
  colon,
  comma,
  expectEnd,
  MalformedJsonError,
  openBrace,
  openBracket,
  quote,
  skipSpace,
  valueEnd,
} from './raw-json.ts'
import { atOnce, type Steps, stepChars } from './steps.ts'

/**
 * Checks that a text is JSON (RFC 8259) and not nested deeper than `maxDepth`, without making values of it: a hostile
 * text of some megabytes would become hundreds of them.
 * @throws {MalformedJsonError}
 */
export function checkJson(text: string, maxDepth: number): void {
  atOnce(checkJsonSteps(text, maxDepth))
}

/** As `checkJson`, of a long text. */
export function* checkJsonSteps(text: string, maxDepth: number): Steps<void> {
  const closers: number[] = []
  let pausedAt = 0
  let at = skipSpace(text, 0)
  for (;;) {
    if (at - pausedAt > stepChars) {
      pausedAt = at
      yield
    }
    // A value begins here.
    const code = text.charCodeAt(at)
    if (code === openBrace || code === openBracket) {
      if (closers.length === maxDepth) throw new MalformedJsonError(`nested deeper than ${maxDepth}`, at)
      const closer = code === openBrace ? closeBrace : closeBracket
      at = skipSpace(text, at + 1)
      if (text.charCodeAt(at) !== closer) {
        closers.push(closer)
        if (closer === closeBrace) at = memberValue(text, at)
        continue
      }
      at++
    } else if (code === quote) at = checkedStringEnd(text, at)
    else at = valueEnd(text, at)
    // It has ended; what surrounds it goes on, or ends too.
    for (;;) {
      at = skipSpace(text, at)
      const closer = closers.at(-1)
      if (closer === undefined) {
        expectEnd(text, at)
        return
      }
      const next = text.charCodeAt(at)
      if (next === comma) {
        at = skipSpace(text, at + 1)
        if (closer === closeBrace) at = memberValue(text, at)
        break
      }
      if (next !== closer) throw new MalformedJsonError('"," or the closing bracket was expected', at)
      closers.pop()
      at++
    }
  }
}

/** From a key to where its value begins. */
function memberValue(text: string, start: number): number {
  if (text.charCodeAt(start) !== quote) throw new MalformedJsonError('a key was expected', start)
  const at = skipSpace(text, checkedStringEnd(text, start))
  if (text.charCodeAt(at) !== colon) throw new MalformedJsonError('":" was expected', at)
  return skipSpace(text, at + 1)
}

const simpleEscapes = new Set([...'"\\/bfnrt'].map(c => c.charCodeAt(0)))

/** The end of a string whose every character and escape is allowed. */
function checkedStringEnd(text: string, start: number): number {
  for (let at = start + 1; at < text.length; at++) {
    const code = text.charCodeAt(at)
    if (code === quote) return at + 1
    if (code < 0x20) throw new MalformedJsonError('a string holds a control character', at)
    if (code !== backslash) continue
    at++
    if (simpleEscapes.has(text.charCodeAt(at))) continue
    if (text[at] !== 'u' || !/^[0-9a-fA-F]{4}$/.test(text.slice(at + 1, at + 5))) {
      throw new MalformedJsonError('an escape that JSON does not have', at)
    }
    at += 4
  }
  throw new MalformedJsonError('a string has no end', start)
}
