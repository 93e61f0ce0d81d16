// Invariant 1: every row hydrates to exactly what was written. Here: whatever the JSON, untouched by anyone.
import { beforeAll, describe, expect, test } from 'vitest'
import {
  asJsonbText,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  useDaemon,
  useEnvironment,
} from '../support/environment.ts'
import { oddValues } from '../support/json-values.ts'

const environment = await useEnvironment()
await useDaemon(environment)
let conversationId: string

beforeAll(async () => {
  conversationId = (await newConversation(environment)).conversationId
})

async function roundTrip(metadata: string | null) {
  const id = await insertMessage(environment, conversationId, metadata)
  await drained(environment)
  const { rows } = await environment.admin.query<{ field: string | null }>(
    'select field from artifact_refs where row_id = $1 order by field nulls last',
    [id],
  )
  return {
    id,
    raw: await rawMetadata(environment, id),
    offloaded: rows.map(row => row.field ?? 'metadata'),
    hydrated: await hydrated(environment, id),
    written: await asJsonbText(environment, metadata),
  }
}

const filler = (bytes: number) => '~'.repeat(bytes)

describe('odd JSON', () => {
  test.for(oddValues)('%s, as tool_interactions', async ([, json]) => {
    const result = await roundTrip(`{"model": "m", "tool_interactions": ${json}}`)
    expect(result.offloaded).toContain('tool_interactions')
    expect(result.hydrated).toBe(result.written)
  })

  test.for(oddValues)('%s, in metadata over the threshold', async ([, json]) => {
    const result = await roundTrip(`{"usage": ${json}, "other": ${json}, "fill": "${filler(8000)}"}`)
    expect(result.offloaded).toEqual(['metadata'])
    expect(result.hydrated).toBe(result.written)
  })

  test.for(oddValues)('%s, in both phases at once', async ([, json]) => {
    const result = await roundTrip(
      `{"tool_interactions": ${json}, "trace": ${json}, "fill": "${filler(8000)}"}`,
    )
    expect(result.offloaded).toEqual(['tool_interactions', 'metadata'])
    expect(result.hydrated).toBe(result.written)
  })
})

describe('tool_interactions that are nothing to offload', () => {
  test.for(['null', '[]', '{}', '"text"', '42', 'true'])('%s stays in the row', async json => {
    const result = await roundTrip(`{"model": "m", "tool_interactions": ${json}}`)
    expect(result.offloaded).toEqual([])
    expect(result.raw).toBe(result.written)
    expect(result.hydrated).toBe(result.written)
  })

  test.for(['null', '[]', '{}', '"text"', '42'])(
    '%s comes back from metadata over the threshold',
    async json => {
      const result = await roundTrip(`{"tool_interactions": ${json}, "fill": "${filler(8000)}"}`)
      expect(result.offloaded).toEqual(['metadata'])
      expect(result.hydrated).toBe(result.written)
    },
  )
})

test('tool_interactions that are an object have a pointer and no count', async () => {
  const result = await roundTrip('{"tool_interactions": {"a": 1}}')
  expect(JSON.parse(result.raw ?? '')).toEqual({
    tool_interactions_ref: expect.any(String),
    tool_interactions_count: null,
  })
  expect(result.hydrated).toBe(result.written)
})

describe('metadata that is no object', () => {
  test.for([null, 'null', '[]', '"text"', '1e400', 'true', '[{"tool_interactions": [1]}]'])(
    '%s stays in the row',
    async json => {
      const result = await roundTrip(json)
      expect(result.offloaded).toEqual([])
      expect(result.raw).toBe(result.written)
      expect(result.hydrated).toBe(result.written)
    },
  )

  test('an array over the threshold leaves an array of one pointer', async () => {
    const result = await roundTrip(`["${filler(8000)}", 1e400]`)
    expect(JSON.parse(result.raw ?? '')).toEqual([
      {
        artifact_metadata_ref: expect.any(String),
        artifact_metadata_kind: expect.any(String),
        artifact_metadata_count: 2,
      },
    ])
    expect(result.hydrated).toBe(result.written)
  })

  test.for([
    ['string', `"${filler(8001)}"`],
    ['number', `1${'0'.repeat(9000)}`],
  ])('a %s over the threshold stays in the row', async ([, json]) => {
    const result = await roundTrip(json ?? '')
    expect(result.offloaded).toEqual([])
    expect(result.raw).toBe(result.written)
    expect(result.hydrated).toBe(result.written)
  })
})

describe('the threshold', () => {
  /** Metadata whose jsonb text has exactly so many bytes. */
  const ofSize = (bytes: number, character = 'x') => {
    const frame = '{"a": ""}'.length
    const width = Buffer.byteLength(character)
    const count = Math.floor((bytes - frame) / width)
    return `{"a": "${character.repeat(count)}${'x'.repeat(bytes - frame - count * width)}"}`
  }

  test.for([
    ['ASCII', 'x'],
    ['three-byte characters', '語'],
  ])('8,000 bytes of %s stay, 8,001 go', async ([, character]) => {
    const stays = await roundTrip(ofSize(8000, character))
    expect(Buffer.byteLength(stays.written ?? '')).toBe(8000)
    expect(stays.offloaded).toEqual([])
    const goes = await roundTrip(ofSize(8001, character))
    expect(Buffer.byteLength(goes.written ?? '')).toBe(8001)
    expect(goes.offloaded).toEqual(['metadata'])
    expect(goes.hydrated).toBe(goes.written)
  })

  test('is applied to what phase 1 leaves, not to what was written', async () => {
    const result = await roundTrip(`{"small": 1, "tool_interactions": ["${filler(20_000)}"]}`)
    expect(result.offloaded).toEqual(['tool_interactions'])
    expect(result.hydrated).toBe(result.written)
  })

  test('an envelope of many large values is still below it, and triggers nothing', async () => {
    const keys = [
      'tenant_id',
      'model',
      'iterations',
      'reason',
      'usage',
      'lead_id',
      'contact_id',
      'account_id',
    ]
    const members = keys.map(key => `"${key}": "${filler(600)}"`)
    const result = await roundTrip(
      `{${members.join(', ')}, "model": "${filler(4000)}", "trace": "${filler(9000)}"}`,
    )
    expect(Buffer.byteLength(result.raw ?? '')).toBeLessThanOrEqual(8000)
    expect(result.hydrated).toBe(result.written)
    const { rows } = await environment.admin.query('select from artifact_refs where row_id = $1', [result.id])
    expect(rows).toHaveLength(1)
  })
})

test('the envelope keeps the documented keys', async () => {
  const kept = {
    tenant_id: 't',
    model: 'm',
    iterations: 3,
    reason: 'done',
    usage: { tokens: 12 },
    lead_id: 'l',
    contact_id: 'c',
    account_id: 'a',
    opportunity_id: 'o',
    activity_id: 'y',
    project_id: 'p',
    site_id: 's',
  }
  const result = await roundTrip(JSON.stringify({ ...kept, tool_interactions: [1], trace: filler(9000) }))
  expect(JSON.parse(result.raw ?? '')).toEqual({
    ...kept,
    tool_interactions_ref: expect.any(String),
    tool_interactions_count: 1,
    artifact_metadata_ref: expect.any(String),
    artifact_metadata_kind: 'assistant_message_metadata',
  })
})
