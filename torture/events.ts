// Events: rows of a partitioned table, with a key of three types, a tenant that is a text, and two columns that leave.
import { between, chance, pick, type Random } from '../src/demo/random.ts'
import type { Payloads } from './payloads.ts'
import { callModel, type Db, type RowOperations } from './row-writer.ts'

/** Tenants of the events. Each is in the key, too. */
export const eventTenants = ['acme', '["a","b"]', 'ä 🚢 \\ "quoted"\u001f']

/** Few, so that tenants, and times of one tenant, share them. */
const numbers = 12

export function createEventOperations(random: Random, payloads: Payloads, tenant: string): RowOperations {
  const number = () => between(random, 1, numbers)
  const time = () => [random() * 0.999, random() * 0.999]
  // What stands where a stub would, and names nothing, is the application's own.
  const stubLike = () =>
    pick(random, ['{"artifact_ref": "00000000-0000-7000-8000-000000000000"}', '{"artifact_ref": 1}'])
  const detail = () =>
    chance(random, 0.1) ? stubLike() : chance(random, 0.4) ? payloads.long() : payloads.whole()
  return {
    name: 'event',
    insert: (db, id) =>
      callModel(db, 'insert_event($1, $2, $3, $4, $5, $6, $7)', [
        id,
        tenant,
        number(),
        ...time(),
        payloads.whole(),
        detail(),
      ]),
    changes: [
      [
        10,
        'replace',
        (db, id) => callModel(db, 'replace_event($1, $2, $3)', [id, payloads.whole(), detail()]),
      ],
      [8, 'replace metadata', (db, id) => callModel(db, 'replace_metadata($1, $2)', [id, payloads.whole()])],
      [8, 'replace detail', (db, id) => callModel(db, 'replace_detail($1, $2)', [id, detail()])],
      [8, 'patch', (db, id) => callModel(db, 'patch_event($1, $2)', [id, payloads.patch()])],
      [
        4,
        'interactions',
        (db, id) =>
          callModel(db, 'patch_event($1, $2)', [id, `{"tool_interactions": ${payloads.interactions()}}`]),
      ],
      [4, 'touch', (db, id) => callModel(db, 'touch_event($1)', [id])],
      [10, 'move', (db, id) => callModel(db, 'move_event($1, $2, $3)', [id, ...time()])],
      [3, 'write back', writeBack],
    ],
    copies: [
      [
        3,
        'copy',
        (db, id, copy) => callModel(db, 'copy_event($1, $2, $3, $4, $5)', [id, copy, number(), ...time()]),
      ],
    ],
    remove: (db, id) => callModel(db, 'delete_event($1)', [id]),
    isKnown: async (db, id) =>
      (await db.query('select from torture.event_rows where row_id = $1', [id])).rowCount === 1,
  }
}

async function writeBack(db: Db, id: string): Promise<boolean> {
  const { rows } = await db.query<{ metadata: string | null; detail: string | null }>(
    `select raw.metadata, raw.detail from torture.event_rows e
      cross join lateral torture.raw_event(e.created_at, e.tenant, e.id) raw where e.row_id = $1`,
    [id],
  )
  const [raw] = rows
  if (raw === undefined) return false
  return callModel(db, 'write_back_event($1, $2, $3)', [id, raw.metadata, raw.detail])
}
