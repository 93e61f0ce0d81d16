// The workflows of GitHub: what runs the code of dependencies has no right worth stealing.
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { parse } from 'yaml'
import { z } from 'zod'

const folder = path.join(import.meta.dirname, '..', '..', '.github', 'workflows')
const workflowSchema = z.object({
  permissions: z.record(z.string(), z.string()),
  jobs: z.record(
    z.string(),
    z.object({
      permissions: z.record(z.string(), z.string()).optional(),
      steps: z.array(z.object({ uses: z.string().optional(), run: z.string().optional() })),
    }),
  ),
})
const workflows = readdirSync(folder).map(name => ({
  name,
  ...workflowSchema.parse(parse(readFileSync(path.join(folder, name), 'utf8'))),
}))

test.each(workflows)('$name pins every action to a commit', ({ jobs }) => {
  const uses = Object.values(jobs).flatMap(job => job.steps.flatMap(step => step.uses ?? []))
  expect(uses.length).toBeGreaterThan(0)
  for (const action of uses) expect(action).toMatch(/^[\w.-]+\/[\w.-]+@[0-9a-f]{40}$/)
})

describe.each(workflows)('$name', ({ permissions, jobs }) => {
  test.each(Object.entries(jobs))(
    'job %s: what writes or proves who it is runs nothing of ours',
    (_, job) => {
      const rights = Object.entries(job.permissions ?? permissions)
      if (!rights.some(([, right]) => right === 'write')) {
        expect(rights).toEqual([['contents', 'read']])
        return
      }
      expect(rights).toEqual([['id-token', 'write']])
      const commands = job.steps.flatMap(step => step.run ?? []).join('\n')
      expect(commands).toMatch(/npm publish .*--ignore-scripts/)
      expect(commands).not.toMatch(/npm (ci|install|test|run)|\.ci\/run/)
      expect(job.steps.some(step => step.uses?.startsWith('actions/checkout@'))).toBe(false)
    },
  )
})
