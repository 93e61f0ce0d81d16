// Which pages are made from what. Two of them have a hand-written beginning, up to a marker.
import path from 'node:path'
import { createProgram } from '../src/cli/program.ts'
import { expectedCataloguePath, readCatalogue, renderCatalogue } from '../src/db/catalogue.ts'
import type { Queryable } from '../src/db/pool.ts'
import { renderCommands } from './cli.ts'
import { renderConfiguration } from './configuration.ts'
import { readSqlSchema, renderSqlReference } from './sql.ts'

const marker = '<!-- From here on made by npm run docs. -->\n'

const docs = (name: string) => path.join(import.meta.dirname, '..', 'docs', name)

/** @param db a migrated database @param read the present text of a file */
export async function renderPages(
  db: Queryable,
  read: (file: string) => string,
): Promise<Map<string, string>> {
  const after = (name: string, made: string): [string, string] => {
    const [written = '', rest] = read(docs(name)).split(marker)
    if (rest === undefined) throw new Error(`docs/${name} has no line ${marker.trim()}`)
    return [docs(name), `${written}${marker}\n${made}`]
  }
  return new Map([
    [expectedCataloguePath, renderCatalogue(await readCatalogue(db))],
    [docs('sql-reference.md'), renderSqlReference(await readSqlSchema(db))],
    after('configuration.md', renderConfiguration()),
    after('cli.md', renderCommands(createProgram())),
  ])
}
