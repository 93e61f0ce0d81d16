// `npm run docs`: writes the parts of docs/ that are made from the code. `test/integration/reference.test.ts` fails when
// the committed files are not what this would write.
import { readFileSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import pg from 'pg'
import { startPostgres } from '../src/embedded/postgres.ts'
import { prepareEmbeddedDatabase } from '../src/embedded/prepare.ts'
import { renderPages } from './pages.ts'

const dir = await mkdtemp(path.join(tmpdir(), 'pg-lighter-docs-'))
const postgres = await startPostgres({ dataDir: path.join(dir, 'postgres') })
try {
  const server = new pg.Client({ connectionString: postgres.url() })
  await server.connect()
  await prepareEmbeddedDatabase(server, postgres, 'docs', { withExampleTables: true })
  await server.end()
  const db = new pg.Client({ connectionString: postgres.url({ database: 'docs' }) })
  await db.connect()
  const pages = await renderPages(db, file => readFileSync(file, 'utf8'))
  await db.end()
  for (const [file, text] of pages) {
    writeFileSync(file, text)
    process.stdout.write(`${path.relative(process.cwd(), file)}\n`)
  }
} finally {
  await postgres.stop()
  await rm(dir, { recursive: true, force: true })
}
