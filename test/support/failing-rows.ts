// Dead letters of the real kind: rows of which nobody can tell whose they are.
import { randomUUID } from 'node:crypto'
import { type TestEnvironment, until } from './environment.ts'

/** Rows of a source whose tenant can't be found are given up: their conversation is nobody's. */
export async function writeFailingRows(environment: TestEnvironment, rows: number): Promise<string[]> {
  const ids = Array.from({ length: rows }, () => randomUUID())
  const conversation = randomUUID()
  await environment.admin.query('alter table conversations alter column tenant_id drop not null')
  await environment.admin.query('insert into conversations (id, tenant_id) values ($1, null)', [conversation])
  for (const id of ids) {
    await environment.app.query(
      `insert into conversation_messages (id, conversation_id, role, content, metadata)
       values ($1, $2, 'assistant', '', '{"tool_interactions": [{"tool": "search"}]}')`,
      [id, conversation],
    )
  }
  await until(async () => {
    const { rows: found } = await environment.admin.query(
      'select from lighter.failed_jobs where row_id = any ($1)',
      [ids],
    )
    return found.length === rows
  }, 'the rows have been given up')
  return ids
}

/** The tenant that was missing. */
export async function mendFailingRows(environment: TestEnvironment): Promise<void> {
  await environment.admin.query(
    'update conversations set tenant_id = gen_random_uuid() where tenant_id is null',
  )
}
