// JSON bodies whose payloads stay text: checked from end to end, never made into values.
import { isUtf8 } from 'node:buffer'
import { checkJson } from '../artifacts/json-check.ts'
import { rawKind, splitObject } from '../artifacts/raw-json.ts'
import { ApiError } from './errors.ts'

/** A member of the body as the exact text that was sent. */
export class RawJson {
  readonly text: string
  constructor(text: string) {
    this.text = text
  }
}

/** Deeper than anything that is meant; each level costs whoever reads it later a level of its stack. */
const maxDepth = 500
/** Longest member that is not a payload: kinds, ids, content types. */
const maxMemberLength = 4096
/** More than any request has. */
const maxMembers = 50

/**
 * Takes a body apart. Members named in `rawMembers` stay text, the others become values.
 * @throws {ApiError} 400; {MalformedJsonError}
 */
export function parseBody(body: Buffer, rawMembers: readonly string[]): Record<string, unknown> {
  if (!isUtf8(body)) throw new ApiError(400, 'malformed_json', 'the body is not UTF-8', { field: 'body' })
  const text = body.toString('utf8')
  checkJson(text, maxDepth)
  if (rawKind(text) !== 'object')
    throw new ApiError(400, 'invalid_request', 'the body must be a JSON object', { field: 'body' })
  return Object.fromEntries(
    [...splitObject(text, maxMembers)].map(([name, raw]) => {
      if (rawMembers.includes(name)) return [name, new RawJson(raw)]
      if (raw.length > maxMemberLength)
        throw new ApiError(400, 'invalid_request', `body.${name.slice(0, 100)} is too long`, {
          field: `body.${name.slice(0, 100)}`,
        })
      return [name, JSON.parse(raw)]
    }),
  )
}
