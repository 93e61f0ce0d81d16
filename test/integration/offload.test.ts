import { describe, expect, test } from 'vitest'
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

const environment = await useEnvironment()
await useDaemon(environment)

describe('phase 1', () => {
  test('tool_interactions leave the row whatever their size, with a pointer and a count', async () => {
    const { conversationId, tenantId } = await newConversation(environment)
    const metadata = '{"model": "m", "tool_interactions": [{"tool": "a"}, {"tool": "b"}]}'
    const id = await insertMessage(environment, conversationId, metadata)
    await drained(environment)
    const row = JSON.parse((await rawMetadata(environment, id)) ?? '')
    expect(row).toEqual({
      model: 'm',
      tool_interactions_ref: expect.stringMatching(/^[0-9a-f-]{36}$/),
      tool_interactions_count: 2,
    })
    expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, metadata))
    const { rows } = await environment.admin.query('select * from artifact_refs where row_id = $1', [id])
    expect(rows).toMatchObject([
      {
        id: row.tool_interactions_ref,
        tenant_id: tenantId,
        kind: 'assistant_message_tool_interactions',
        entity_type: 'conversation',
        entity_id: conversationId,
        content_type: 'application/json',
        field: 'tool_interactions',
      },
    ])
  })
})
