// Files: rows with a text for a key, and a column of mode whole whose pointer the application writes, too.
import { between, chance, pick, type Random, uuid } from '../src/demo/random.ts'
import { callModel, type Db, type RowOperations } from './row-writer.ts'

export type BodyType = 'text' | 'bytea'

/** SQL for the column's type: from the model's bytes, and back. */
const conversions: Record<BodyType, { fromBytes: string; toBytes: string }> = {
  text: { fromBytes: `convert_from(bytes, 'UTF8')`, toBytes: `convert_to(body, 'UTF8')` },
  bytea: { fromBytes: 'bytes', toBytes: 'body' },
}

/** `files.sql` for a column of this type. */
export const filesModelOf = (sql: string, type: BodyType) =>
  sql
    .replaceAll(':body_type', type)
    .replaceAll(':from_bytes', conversions[type].fromBytes)
    .replaceAll(':to_bytes', conversions[type].toBytes)

export function createBodies(random: Random, type: BodyType, noise: string): () => Buffer {
  const cut = (bytes: number) => {
    const from = between(random, 0, noise.length - bytes)
    return noise.slice(from, from + bytes)
  }
  // Postgres has no zero in a text; above 127 a text has characters of two bytes.
  const everyByte =
    type === 'bytea'
      ? Buffer.from(Array.from({ length: 256 }, (_, byte) => byte))
      : Buffer.from(String.fromCharCode(...Array.from({ length: 255 }, (_, n) => n + 1)))
  const stub = `{"artifact_ref": "00000000-0000-7000-8000-000000000000"}`
  const heads = [
    everyByte,
    Buffer.from('\u001f\u001f'),
    Buffer.from(stub),
    Buffer.from(`\ufeff\r\n\\x41 '"\\N\t🚢`),
    Buffer.alloc(0),
  ]
  const lengths: [low: number, high: number][] = [
    [0, 40],
    [0, 40],
    [3000, 9000],
    [9000, 30_000],
    [9000, 30_000],
    [9000, 30_000],
    [66_000, 400_000],
  ]
  return () => {
    const head = pick(random, heads)
    const middle = Buffer.from(cut(between(random, ...pick(random, lengths))))
    return chance(random, 0.5) ? Buffer.concat([head, middle]) : Buffer.concat([middle, head])
  }
}

const names = (random: Random) =>
  pick(random, ['', '["a","b"] ', '\u001f', `it's "quoted" \\ `, 'ä 🚢/', 'n'.repeat(300)])

export function createFileOperations(random: Random, body: () => Buffer, tenantId: string): RowOperations {
  /** Unlike any other, however odd it begins; a command must not take it for an option. */
  const name = () => `${pick(random, ['f', '7', 'null '])}${names(random)}${uuid(random)}`
  const pointer = () => (chance(random, 0.2) ? uuid(random) : null)
  return {
    name: 'file',
    insert: (db, id) =>
      callModel(db, 'insert_file($1, $2, $3, $4, $5)', [
        id,
        name(),
        tenantId,
        chance(random, 0.05) ? null : body(),
        pointer(),
      ]),
    changes: [
      [14, 'write', (db, id) => callModel(db, 'write_file($1, $2, $3)', [id, body(), pointer()])],
      [6, 'save null', (db, id) => callModel(db, 'save_null($1)', [id])],
      [6, 'full save', (db, id) => callModel(db, 'save_whole($1)', [id])],
      [4, 'write back', writeBack],
      [4, 'clear', (db, id) => callModel(db, 'clear_file($1)', [id])],
      [3, 'clear the pointer', (db, id) => callModel(db, 'drop_pointer($1)', [id])],
      [5, 'append', (db, id) => callModel(db, 'append_file($1, $2)', [id, Buffer.from(' more')])],
      [2, 'id of nothing', (db, id) => callModel(db, 'point_file($1, $2)', [id, uuid(random)])],
      [4, 'id of another', (db, id) => callModel(db, 'adopt_file($1)', [id])],
      [2, 'id of another tenant', (db, id) => callModel(db, 'steal_file($1)', [id])],
      [3, 'rename', (db, id) => callModel(db, 'rename_file($1, $2)', [id, name()])],
    ],
    copies: [[2, 'reborn', (db, id, copy) => callModel(db, 'replace_file($1, $2, $3)', [id, copy, body()])]],
    remove: (db, id) => callModel(db, 'delete_file($1)', [id]),
    isKnown: async (db, id) =>
      (await db.query('select from torture.file_rows where row_id = $1', [id])).rowCount === 1,
  }
}

async function writeBack(db: Db, id: string): Promise<boolean> {
  const { rows } = await db.query<{ body: Buffer | null; pointer: string | null }>(
    `select torture.bytes_of(m.body) as body, m.body_artifact_id as pointer
       from torture.file_rows f join public.files m on m.name = f.name where f.row_id = $1`,
    [id],
  )
  const [raw] = rows
  if (raw === undefined) return false
  return callModel(db, 'write_back_file($1, $2, $3)', [id, raw.body, raw.pointer])
}
