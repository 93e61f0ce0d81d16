// Values of the tables beside the messages: what each must read as and what stands in its row, of one snapshot. Rows are
// read as the product reads them, by the text of their key.
import type pg from 'pg'
import type { HydrateInput } from '../src/artifacts/hydrate.ts'
import { readRows } from '../src/artifacts/rows.ts'
import { readValues, type StoredValue } from '../src/artifacts/values.ts'
import { type ArtifactId, asTenantId } from '../src/ids.ts'
import { loadSources, type Source } from '../src/source/sources.ts'

/** One column of one row. */
export interface Cell {
  rowId: string
  version: number
  /** Whose the model says that it is. */
  tenantId: string
  /** Of the bytes that it must read as; null for SQL's null. */
  expectedHash: string | null
  /** Else equal as jsonb. */
  exact: boolean
  /** The row has an id of the application's that names nothing of its tenant's. */
  astray: boolean
  /** Null: no row of this key was found. */
  stored: { source: Source; document: HydrateInput } | { source: Source; value: StoredValue } | null
}

export interface Columns {
  metadata: Source
  detail: Source
  body: Source
}

export async function loadColumns(db: pg.Pool): Promise<Columns> {
  const sources = [...(await loadSources(db)).values()]
  const named = (name: string) => {
    const found = sources.find(
      source => source.jsonColumn === name && /\.(events|files)$/.test(source.tableSql),
    )
    if (found === undefined) throw new Error(`${name} is not attached`)
    return found
  }
  return { metadata: named('metadata'), detail: named('detail'), body: named('body') }
}

interface EventRow {
  rowId: string
  rowKey: string
  version: number
  exact: boolean
  metadataHash: string | null
  detailHash: string | null
  tenantId: string
  attached: boolean
  raw: { metadata: string | null; detail: string | null; pointer: string | null } | null
}

interface FileRow {
  rowId: string
  name: string
  version: number
  tenantId: string
  astray: boolean
  bodyHash: string | null
}

/** @param rowIds of events and files, as the model knows them; those that it does not know are left out */
export async function readCells(admin: pg.Pool, columns: Columns, rowIds: string[]): Promise<Cell[]> {
  const client = await admin.connect()
  let broken: Error | undefined
  try {
    await client.query('begin isolation level repeatable read')
    // Before the snapshot: what is in it of partitions must be what the catalogue says.
    await client.query('lock table torture.partitions in share mode')
    const cells = [
      ...(await readEventCells(client, columns, rowIds)),
      ...(await readFileCells(client, columns, rowIds)),
    ]
    await client.query('commit')
    return cells
  } catch (error) {
    broken = error instanceof Error ? error : new Error(String(error))
    throw error
  } finally {
    client.release(broken)
  }
}

async function readEventCells(
  client: pg.PoolClient,
  { metadata, detail }: Columns,
  rowIds: string[],
): Promise<Cell[]> {
  const { rows } = await client.query<EventRow>(
    `select e.row_id as "rowId", e.row_key as "rowKey", e.version, e.exact,
            encode(sha256(convert_to(e.metadata::text, 'UTF8')), 'hex') as "metadataHash",
            encode(sha256(convert_to(e.detail::text, 'UTF8')), 'hex') as "detailHash",
            lighter.tenant_of($2, e.tenant)::text as "tenantId", coalesce(p.attached, false) as attached,
            case when not p.attached then
              (select json_build_object('metadata', r.metadata, 'detail', r.detail, 'pointer', lighter.stub_id(r.detail))
                 from torture.raw_event(e.created_at, e.tenant, e.id) r) end as raw
       from torture.event_rows e
       left join torture.partitions p on p.starts = date_trunc('day', e.created_at, 'UTC')
      where e.row_id = any ($1::uuid[])`,
    [rowIds, metadata.tenantNamespace],
  )
  const keys = rows.filter(row => row.attached).map(row => row.rowKey)
  const documents = await readRows(client, metadata, keys)
  const values = await readValues(client, detail, keys)
  return rows.flatMap((row): Cell[] => {
    const tenantId = asTenantId(row.tenantId)
    const document = row.attached
      ? documents.get(row.rowKey)
      : row.raw && { tenantId, metadata: row.raw.metadata, field: metadata.phase1Field }
    const value = row.attached
      ? values.get(row.rowKey)
      : row.raw && {
          tenantId,
          value: row.raw.detail === null ? null : Buffer.from(row.raw.detail),
          pointer: row.raw.pointer as ArtifactId | null,
        }
    const common = { rowId: row.rowId, version: row.version, tenantId, astray: false }
    return [
      {
        ...common,
        expectedHash: row.metadataHash,
        exact: row.exact,
        stored: document ? { source: metadata, document } : null,
      },
      {
        ...common,
        expectedHash: row.detailHash,
        exact: true,
        stored: value ? { source: detail, value } : null,
      },
    ]
  })
}

async function readFileCells(client: pg.PoolClient, { body }: Columns, rowIds: string[]): Promise<Cell[]> {
  const { rows } = await client.query<FileRow>(
    `select f.row_id as "rowId", f.name, f.version, f.tenant_id as "tenantId", f.astray, encode(sha256(f.body), 'hex') as "bodyHash"
       from torture.file_rows f where f.row_id = any ($1::uuid[])`,
    [rowIds],
  )
  const values = await readValues(
    client,
    body,
    rows.map(row => row.name),
  )
  return rows.map(row => {
    const value = values.get(row.name)
    return {
      rowId: row.rowId,
      version: row.version,
      tenantId: row.tenantId,
      expectedHash: row.bodyHash,
      exact: true,
      astray: row.astray,
      stored: value === undefined ? null : { source: body, value },
    }
  })
}
