// The search of a run's logs, at its end, finds what must not be there.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { expect, test } from 'vitest'
import { findLeaks } from '../support/logs.ts'

const leaksIn = (line: string): string[] => {
  const directory = mkdtempSync(path.join(tmpdir(), 'pg-lighter-logs-'))
  try {
    writeFileSync(path.join(directory, 'a.log'), `{"msg":"before"}\n${line}\n{"msg":"after"}\n`)
    return findLeaks(directory, ['s3cret-key', 'pa55word'])
  } finally {
    rmSync(directory, { recursive: true })
  }
}

test.each([
  ['a secret', '{"msg":"connecting to postgresql://worker:pa55word@db"}'],
  ['a payload', '{"error":"failing row contains {\\"tool_interactions\\": [1, 2]}"}'],
  ['a payload as it is', 'DETAIL: {"tool_interactions": {"a": 1}}'],
  ['a long text', `{"error":"${'~'.repeat(60)}"}`],
])('%s is found', (_, line) => {
  expect(leaksIn(line)).toHaveLength(1)
  expect(leaksIn(line).join(), 'and a secret is not repeated').not.toContain('pa55word')
})

test('what we say ourselves is none', () => {
  expect(leaksIn('{"msg":"batch","offloadedRows":3,"kind":"assistant_message_tool_interactions"}')).toEqual(
    [],
  )
})
