// docs/sql-reference.md, out of the comments in a migrated database.
import type { Queryable } from '../src/db/pool.ts'
import { cell, renderMarkdownTable } from './tables.ts'

interface DescribedFunction {
  name: string
  signature: string
  result: string
  meaning: string | null
  callers: string[]
}

interface DescribedColumn {
  name: string
  type: string
  meaning: string | null
}

interface DescribedRelation {
  name: string
  kind: 'table' | 'view'
  meaning: string | null
  readers: string[]
  columns: DescribedColumn[]
}

export interface SqlSchema {
  functions: DescribedFunction[]
  relations: DescribedRelation[]
}

/** What there is, and what is said of it. Triggers' functions and those that attach makes are left out. */
export async function readSqlSchema(db: Queryable): Promise<SqlSchema> {
  const functions = await db.query<DescribedFunction>(`
    select p.proname as name,
           'lighter.' || p.proname || '(' || pg_get_function_arguments(p.oid) || ')' as signature,
           pg_get_function_result(p.oid) as result,
           obj_description(p.oid, 'pg_proc') as meaning,
           array(select distinct r.rolname::text
                   from aclexplode(p.proacl) a join pg_roles r on r.oid = a.grantee
                  where a.grantee <> p.proowner and r.rolname <> 'service_role' order by 1) as callers
      from pg_proc p
     where p.pronamespace = 'lighter'::regnamespace and p.prorettype <> 'trigger'::regtype
     order by p.proname, p.oid::regprocedure::text collate "C"`)
  const relations = await db.query<DescribedRelation>(`
    select c.oid::regclass::text as name,
           case when c.relkind = 'v' then 'view' else 'table' end as kind,
           obj_description(c.oid, 'pg_class') as meaning,
           array(select distinct r.rolname::text
                   from aclexplode(c.relacl) a join pg_roles r on r.oid = a.grantee
                  where a.grantee <> c.relowner and r.rolname <> 'service_role' and a.privilege_type = 'SELECT'
                  order by 1) as readers,
           (select json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
                                              'meaning', col_description(c.oid, a.attnum)) order by a.attnum)
              from pg_attribute a
             where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns
      from pg_class c
     where c.relkind in ('r', 'p', 'v')
       and (c.relnamespace = 'lighter'::regnamespace or c.oid = 'public.artifact_refs'::regclass)
     order by c.oid <> 'public.artifact_refs'::regclass, c.oid::regclass::text collate "C"`)
  return { functions: functions.rows, relations: relations.rows }
}

const intro = `# SQL reference

Made from the comments in the database by \`npm run docs\`; examples and explanations are in [sql.md](sql.md).

On Supabase \`service_role\` reads and calls what \`lighter_daemon\` does, see [supabase.md](supabase.md#roles).
`

export function renderSqlReference({ functions, relations }: SqlSchema): string {
  const open = functions.filter(f => f.callers.length > 0 || /^(at|de)tach$/.test(f.name))
  const views = relations.filter(r => r.kind === 'view')
  const tables = relations.filter(r => r.kind === 'table')
  return [
    intro,
    '## Functions\n',
    ...open.map(renderFunction),
    '## Views\n',
    ...views.map(renderRelation),
    '## Tables\n',
    ...tables.map(renderRelation),
  ].join('\n')
}

function renderFunction(f: DescribedFunction): string {
  const callers = f.callers.length === 0 ? 'the owner of the tables' : codes(f.callers)
  const [what = '', example] = (f.meaning ?? '').split(' Example: ')
  const meaning = cell(what)
  return `### ${f.name}

\`\`\`text
${f.signature.replace('(', '(\n  ').replaceAll(/, (?=\w+ \w)/g, ',\n  ')}
  → ${f.result}
\`\`\`

${meaning}${example === undefined ? '' : `\n\n\`${example}\``}

Called by ${callers}.
`
}

function renderRelation(r: DescribedRelation): string {
  return `### ${r.name}

${cell(r.meaning ?? '')}

Read by ${r.readers.length === 0 ? 'its owner alone' : codes(r.readers)}.

${renderMarkdownTable(
  ['column', 'type', 'meaning'],
  r.columns.map(c => [`\`${c.name}\``, c.type, cell(c.meaning ?? '')]),
)}
`
}

const codes = (names: string[]) => names.map(name => `\`${name}\``).join(', ')
