// Shapes of requests and answers: what is checked, and what the OpenAPI document says.
import { z } from 'zod'
import type { ArtifactRecord } from '../catalogue/record.ts'

const uuid = z
  .string()
  .regex(/^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$/, 'must be a uuid')
  .transform(value => value.toLowerCase())

export const kind = z
  .string()
  .min(1)
  .max(100)
  .describe('What the artifact is, in snake_case, such as agent_trace')
export const entityType = z
  .string()
  .regex(/^[A-Za-z][A-Za-z0-9_.:-]{0,99}$/, 'must begin with a letter and have letters, digits, _ . : - only')
  .describe('What the artifact belongs to, such as conversation')
export const entityId = uuid.describe('Id of what it belongs to')

export const artifactParams = z.object({ id: uuid.describe('Id of the artifact') })

/** A client's own statement of its tenant. It grants nothing: another one than the authenticated is refused. */
export const tenantId = z
  .string()
  .max(100)
  .optional()
  .describe('Must be the tenant of the credentials, if given')

export const artifactSchema = z.object({
  id: z.string(),
  tenant_id: z.string(),
  kind: z.string(),
  entity_type: z.string().nullable(),
  entity_id: z.string().nullable(),
  r2_key: z.string().describe('Object that holds the payload; many artifacts may be in one'),
  content_type: z.string().nullable(),
  size_bytes: z.number().nullable().describe('Length of the payload, uncompressed'),
  sha256: z.string().nullable().describe('Of the payload, uncompressed, in hex'),
  created_at: z.string(),
})

export type ArtifactJson = z.infer<typeof artifactSchema>

export function artifactJson(record: ArtifactRecord): ArtifactJson {
  return { ...record, created_at: record.created_at.toISOString() }
}

export const errorSchema = z
  .looseObject({
    status: z.literal('error'),
    code: z.string().describe('Stable; see docs/api.md'),
    message: z.string(),
    request_id: z.string(),
    field: z.string().optional().describe('Of the request, that the error is about'),
  })
  .describe('What went wrong')

/** Answers that every route under /api may give. */
export const commonErrors = {
  400: errorSchema,
  401: errorSchema,
  403: errorSchema,
  429: errorSchema,
  503: errorSchema,
}
