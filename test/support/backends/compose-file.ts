// docker-compose.yml as data: tests run on the images that it names, and look at what it says.
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { parse } from 'yaml'
import { z } from 'zod'

export const composePath = path.join(import.meta.dirname, '..', '..', '..', 'docker-compose.yml')

const serviceSchema = z.looseObject({
  image: z.string(),
  command: z.array(z.string()).optional(),
  environment: z.record(z.string(), z.string()).default({}),
  ports: z.array(z.string()).default([]),
  volumes: z.array(z.string()).default([]),
})

/** With anchors and merge keys resolved, variables as they are written. */
export function readCompose() {
  const document: unknown = parse(readFileSync(composePath, 'utf8'), { merge: true })
  const { services } = z.looseObject({ services: z.record(z.string(), serviceSchema) }).parse(document)
  return { document, services }
}

/** `${NAME:-default}` as Compose reads it. */
export function interpolate(text: string, env: Record<string, string | undefined>): string {
  return text.replace(/\$\{(\w+):-([^}]*)\}/g, (_, name: string, otherwise: string) => env[name] || otherwise)
}
