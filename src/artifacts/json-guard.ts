// JSON on its way into a larger JSON answer, too long to be held. What is not JSON could write that answer, so each
// chunk is looked at before it goes on; at the first byte that is wrong the stream errors.
import { Transform } from 'node:stream'
import { ArtifactError, messageOf } from '../errors.ts'
import { MalformedJsonError } from './raw-json.ts'

/** Postgres itself takes no text that is nested so deep. */
const maxDepth = 100_000

/** Passes on the bytes of one JSON text (UTF-8, RFC 8259). Errors with `artifact_corrupt`. */
export function jsonGuard(artifactId: string): Transform {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
  const reader = createReader()
  const problemOf = (bytes: Buffer, last: boolean): Error | null => {
    try {
      reader.read(decoder.decode(bytes, { stream: !last }))
      if (last) reader.end()
      return null
    } catch (error) {
      return new ArtifactError(
        'artifact_corrupt',
        `artifact ${artifactId} is not JSON: ${messageOf(error)}`,
        {
          cause: error,
        },
      )
    }
  }
  return new Transform({
    transform: (chunk: Buffer, _encoding, done) => done(problemOf(chunk, false), chunk),
    flush: done => done(problemOf(Buffer.alloc(0), true)),
  })
}

/** What may come next. `scalar`: a number or a literal has begun. */
type State =
  | 'value'
  | 'value or ]'
  | 'key'
  | 'key or }'
  | ':'
  | ', or end'
  | 'string'
  | 'escape'
  | 'hex'
  | 'scalar'

const scalarPattern = /^(?:true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)$/
/** Postgres writes a number of 131,072 digits before the point and 16,383 after it. */
const longestScalar = 200_000
const space = /[ \n\r\t]/
// biome-ignore lint/suspicious/noControlCharactersInRegex: JSON forbids them in strings
const plainText = /[^"\\\u0000-\u001f]*/y

function createReader() {
  let state: State = 'value'
  const closers: ('}' | ']')[] = []
  let isKey = false
  let hexLeft = 0
  let scalar = ''
  let before = 0

  const fail = (what: string, at: number): never => {
    throw new MalformedJsonError(what, before + at)
  }
  const open = (closer: '}' | ']', at: number) => {
    if (closers.length === maxDepth) fail(`nested deeper than ${maxDepth}`, at)
    closers.push(closer)
    state = closer === '}' ? 'key or }' : 'value or ]'
  }
  const endScalar = (at: number) => {
    if (!scalarPattern.test(scalar)) fail('a value was expected', at)
    scalar = ''
    state = ', or end'
  }

  const step = (c: string, at: number) => {
    if (state === 'escape') {
      if (c === 'u') hexLeft = 4
      else if (!'"\\/bfnrt'.includes(c)) fail('an escape that JSON does not have', at)
      state = c === 'u' ? 'hex' : 'string'
      return
    }
    if (state === 'hex') {
      if (!/[0-9a-fA-F]/.test(c)) fail('an escape that JSON does not have', at)
      hexLeft--
      if (hexLeft === 0) state = 'string'
      return
    }
    if (state === 'string') {
      if (c === '\\') state = 'escape'
      else if (c === '"') state = isKey ? ':' : ', or end'
      else fail('a string holds a control character', at)
      return
    }
    if (state === 'scalar') {
      if (/[-+.0-9A-Za-z]/.test(c)) {
        scalar += c
        if (scalar.length > longestScalar) fail('a value was expected', at)
        return
      }
      endScalar(at)
    }
    if (space.test(c)) return
    if (state === ', or end') {
      const closer = closers.at(-1)
      if (closer === undefined) fail('the text goes on after its value', at)
      if (c === ',') state = closer === '}' ? 'key' : 'value'
      else if (c === closer) closers.pop()
      else fail('"," or the closing bracket was expected', at)
    } else if (state === ':') {
      if (c !== ':') fail('":" was expected', at)
      state = 'value'
    } else if (c === '}' && state === 'key or }') endContainer()
    else if (c === ']' && state === 'value or ]') endContainer()
    else if (state === 'key' || state === 'key or }') {
      if (c !== '"') fail('a key was expected', at)
      isKey = true
      state = 'string'
    } else if (c === '"') {
      isKey = false
      state = 'string'
    } else if (c === '{') open('}', at)
    else if (c === '[') open(']', at)
    else {
      scalar = c
      state = 'scalar'
    }
  }
  const endContainer = () => {
    closers.pop()
    state = ', or end'
  }

  return {
    read: (text: string) => {
      for (let at = 0; at < text.length; at++) {
        if (state === 'string') {
          // The bulk of a long text, in one go.
          plainText.lastIndex = at
          plainText.test(text)
          at = plainText.lastIndex
          if (at === text.length) break
        }
        step(text[at] as string, at)
      }
      before += text.length
    },
    end: () => {
      if (state === 'scalar') endScalar(0)
      if (state !== ', or end' || closers.length > 0) fail('the text has no end', 0)
    },
  }
}
