// Runs what lighter.check_attach runs in a database where nothing of ours is installed: the text of the same functions, from
// the folder sql/, with every call of ours replaced by the body of the function that it calls. What is left is one anonymous
// block that reads the system's catalogue and writes nothing, so a read-only login on a replica can run it.
//
// Functions in SQL can be put in place. Of those in PL/pgSQL only the one that is the block itself can, and the checks of
// lighter.source_obstacles; all others that a check calls are therefore written in SQL. Tables of ours are taken for empty, those of settings for their defaults.
import { readdir, readFile } from 'node:fs/promises'
import path from 'node:path'
import { LighterError } from '../errors.ts'

const sqlDir = path.join(import.meta.dirname, '..', '..', 'sql')

/** Where the block leaves what it found, until the transaction ends. */
export const describedSetting = 'pg_lighter.described'

/** What is told of a description, with what the settings say where it says nothing. */
export const answerSql = (source: string, obstacles: string) => `jsonb_build_object(
    'source', to_jsonb(${source}) || (
      select jsonb_build_object('ship_alone_bytes', coalesce(${source}.ship_alone_bytes, d.ship_alone_bytes),
               'settle_ms', extract(epoch from coalesce(${source}.settle_for, d.settle_for)) * 1000,
               'max_wait_ms', extract(epoch from coalesce(${source}.max_wait, d.max_wait)) * 1000)
        from lighter.settings d),
    'obstacles', to_jsonb(${obstacles}),
    'threshold_bytes', lighter.effective_threshold(${source}),
    'envelope_value_limit', lighter.envelope_value_limit(${source}))`

interface SqlFunction {
  name: string
  parameters: { name: string; type: string; fallback: string | null; isOut: boolean }[]
  /** Names of what `returns table (…)` has; null: one value, or rows of one. */
  columns: string[] | null
  isSet: boolean
  language: string
  body: string
}

interface SqlTable {
  columns: { name: string; type: string; fallback: string | null }[]
}

export interface SqlLibrary {
  functions: Map<string, SqlFunction>
  tables: Map<string, SqlTable>
}

/** Rows of these are there from the first migration on. */
const settingsTables = new Set(['settings', 'prices'])

/** What asks about things that cannot be there yet. */
const answers: Record<string, string> = {
  // Of rows that are offloaded already.
  change_obstacles: 'select null::jsonb where false',
  with_current_names: 'select null',
  // Of a when_sql, which is not asked for here.
  parse_when: 'select null',
  try_when: 'select null::jsonb[]',
  when_obstacles: 'select null::jsonb where false',
  when_warnings: 'select null::jsonb where false',
}

export async function readSqlLibrary(): Promise<SqlLibrary> {
  const read = async (folder: string) => {
    const names = (await readdir(path.join(sqlDir, folder))).filter(name => name.endsWith('.sql')).sort()
    const texts = await Promise.all(names.map(name => readFile(path.join(sqlDir, folder, name), 'utf8')))
    return withoutComments(texts.join('\n'))
  }
  const [functions, migrations] = await Promise.all([read('functions'), read('migrations')])
  return { functions: functionsOf(functions), tables: tablesOf(migrations) }
}

/** @throws {LighterError} `check_not_portable`: names the function that has to be installed to be run */
export function describeSourceBlock(
  library: SqlLibrary,
  values: { target: string; json_column: string; said: string },
): string {
  const main = library.functions.get('describe_source')
  const sources = library.tables.get('sources')
  if (main === undefined || sources === undefined) throw notPortable('describe_source', 'it is not there')
  const nulls = sources.columns.map(c => `null::${c.type} as ${c.name}`).join(', ')
  const composites: string[] = []
  const declared = (text: string) =>
    text
      .replaceAll(/(\w+) lighter\.sources\b/g, (_, name: string) => {
        composites.push(name)
        return `${name} record`
      })
      .replaceAll(/lighter\.obstacle\[\]/g, 'jsonb[]')
  const parameters = main.parameters.map(({ name, type, isOut }) =>
    isOut
      ? declared(`${name} ${type};`)
      : `${name} ${type} := ${Object.entries(values).find(([key]) => key === name)?.[1] ?? 'null'};`,
  )
  const outer = composites.splice(0)
  const start = main.body.search(/\bbegin\b/)
  const declarations = declared(main.body.slice(0, start))
  const prepare = (names: string[]) => names.map(name => `select ${nulls} into ${name};`).join(' ')
  const statements = main.body
    .slice(start)
    .trim()
    .replace(/^begin\b/, () => `begin ${prepare(composites)}`)
    .replace(/;?\s*$/, ';')
    .replaceAll(/\breturn;/g, 'exit described;')
  return `do $lighter$
#variable_conflict use_column
<<describe_source>>
declare ${parameters.join(' ')} collected jsonb[] := '{}';
begin
  ${prepare(outer)}
  <<described>>
  ${declarations}
  ${inline(library, hoistChecks(library, statements))}
  perform set_config('${describedSetting}', (${inline(library, answerSql('source', 'obstacles'))})::text, true);
end $lighter$`
}

function notPortable(name: string, why: string): LighterError {
  return new LighterError(
    'check_not_portable',
    `lighter.${name} cannot be asked before it is installed: ${why}`,
    {
      hint: 'Run lighter migrate, then: lighter attach <table> --dry-run',
    },
  )
}

/**
 * Checks that are written in PL/pgSQL cannot stand in a query. Of the checks that `describe_source` asks for in one query, each
 * then becomes a statement, or a block, that adds to `collected`.
 */
function hoistChecks(library: SqlLibrary, statements: string): string {
  const call = /array\(select o from lighter\.source_obstacles\((\w+)\) o\)/.exec(statements)
  const checks = library.functions.get('source_obstacles')
  if (call === null || checks === undefined) return statements
  const branches = checks.body.split(/\bunion all\b/).map(branch => branch.trim())
  const names = branches.map(branch => /^select o from lighter\.(\w+)\(source\) o$/.exec(branch)?.[1] ?? '')
  if (!names.some(name => library.functions.get(name)?.language === 'plpgsql')) return statements
  const of = call[1] ?? ''
  const added = names.map((name, i) => {
    const check = library.functions.get(name)
    return check?.language === 'plpgsql'
      ? blockOf(check, of)
      : `collected := collected || array(${(branches[i] ?? '').replace('(source)', `(${of})`)});`
  })
  const start = statements.lastIndexOf(';', call.index) + 1
  return `${statements.slice(0, start)}\n${added.join('\n')}${statements.slice(start).replace(call[0], 'collected')}`
}

/** A check as a block: what it returns is collected. */
function blockOf({ name, body }: SqlFunction, of: string): string {
  let text = body.replaceAll(/\breturn;/g, `exit ${name};`)
  for (;;) {
    const found = /\breturn (next|query)\s/.exec(text)
    if (found === null) break
    const from = found.index + found[0].length
    const end = endOfStatement(text, from)
    const rows = text.slice(from, end).replaceAll(/\bselect \((\w+\.\w+)\)\.\*/g, 'select $1')
    const collected = found[1] === 'next' ? rows : `array(${rows})`
    text = `${text.slice(0, found.index)}collected := collected || ${collected}${text.slice(end)}`
  }
  // What is declared counts with the source, so that comes first.
  return `declare source record; begin source := ${of};\n<<${name}>>\n${text.replace(/;?\s*$/, ';')}\nend;`
}

/** Everything of ours that a text names, replaced. */
function inline(library: SqlLibrary, sql: string, depth = 0): string {
  if (depth > 30) throw notPortable('describe_source', 'its functions call each other')
  let text = sql
    // Of a source that is not there, no column was renamed.
    .replaceAll(/\(lighter\.with_current_names\((\w+)\)\)\./g, '$1.')
    .replaceAll("'lighter'::regnamespace", "to_regnamespace('lighter')")
    .replaceAll(
      "has_parameter_privilege('lighter_daemon',",
      "has_parameter_privilege(to_regrole('lighter_daemon')::oid,",
    )
  for (let from = 0; ; ) {
    const at = text.indexOf('lighter.', from)
    if (at === -1) return text
    const name = /^\w+/.exec(text.slice(at + 'lighter.'.length))?.[0] ?? ''
    const end = at + 'lighter.'.length + name.length
    // Inside of a text, such as the hint "lighter.check_attach(…) names what is left".
    if (isInString(text, at) || /[\w"]/.test(text[at - 1] ?? '')) {
      from = end
      continue
    }
    const before = text.slice(0, at)
    if (text[end] === '(') {
      const close = closing(text, end)
      const replaced = call(
        library,
        name,
        splitTop(text.slice(end + 1, close)),
        before,
        text.slice(close + 1),
        depth,
      )
      text = before + replaced.sql + text.slice(close + 1 + replaced.eaten)
      from = at + replaced.sql.length
    } else {
      const rows = tableRows(library, name)
      text = `${before}${rows}${text.slice(end)}`
      from = at + rows.length
    }
  }
}

function tableRows(library: SqlLibrary, name: string): string {
  const table = library.tables.get(name)
  if (table === undefined) throw notPortable(name, 'it is neither a table nor a function of this version')
  const withDefaults = settingsTables.has(name)
  const columns = table.columns.map(
    c => `(${withDefaults && c.fallback !== null ? c.fallback : 'null'})::${c.type} as ${c.name}`,
  )
  return `(select ${columns.join(', ')}${withDefaults ? '' : ' limit 0'})`
}

function call(
  library: SqlLibrary,
  name: string,
  args: string[],
  before: string,
  after: string,
  depth: number,
): { sql: string; eaten: number } {
  const given = args.map(arg => inline(library, arg, depth + 1))
  if (name === 'new_obstacle') {
    const [code = 'null', problem = 'null', hint = 'null', isFatal = 'true'] = given
    return {
      sql: `jsonb_build_object('code', ${code}, 'problem', ${problem}, 'hint', ${hint}, 'is_fatal', coalesce(${isFatal}, true))`,
      eaten: 0,
    }
  }
  const found = library.functions.get(name)
  const body = answers[name] ?? found?.body
  if (found === undefined || body === undefined) throw notPortable(name, 'it is no function of this version')
  if (answers[name] === undefined && found.language !== 'sql')
    throw notPortable(name, 'it is not written in SQL')
  const parameters = found.parameters.filter(p => !p.isOut)
  const sources = library.tables.get('sources')?.columns ?? []
  const scalars: string[] = []
  const from: string[] = []
  parameters.forEach((parameter, i) => {
    const value = given[i] ?? parameter.fallback ?? 'null'
    if (parameter.type === 'lighter.sources')
      from.push(
        `(select ${sources.map(c => `${value}.${c.name} as ${c.name}`).join(', ')}) ${parameter.name}`,
      )
    else scalars.push(`(${value})::${parameter.type} as ${parameter.name}`)
  })
  if (scalars.length > 0) from.push(`(select ${scalars.join(', ')}) ${name}`)
  const inner = inline(library, body, depth + 1)
  const fromSql = from.length === 0 ? '' : ` from ${from.join(' cross join ')}`
  if (!found.isSet) {
    return { sql: `(select (${inner})${fromSql})`, eaten: 0 }
  }
  if (!/\b(from|join|lateral|,)\s*$/i.test(before)) throw notPortable(name, 'its rows are used as a value')
  // The alias, and the names of its columns where it has them.
  const [alias = '', word, list] = /^\s*(?:as\s+)?(\w+)(\s*\([^)]*\))?/i.exec(after) ?? []
  if (word === undefined) throw notPortable(name, 'its rows have no alias')
  const names = list ?? `(${found.columns?.join(', ') ?? word})`
  const lateral = /\blateral\s*$/i.test(before) ? '' : 'lateral '
  const rows =
    from.length === 0 ? inner : `select q.* from ${from.join(' cross join ')} cross join lateral (${inner}) q`
  return { sql: `${lateral}(${rows}) ${word}${names}`, eaten: alias.length }
}

function functionsOf(text: string): Map<string, SqlFunction> {
  const functions = new Map<string, SqlFunction>()
  for (const match of text.matchAll(/create or replace function lighter\.(\w+)\(/g)) {
    const open = match.index + match[0].length - 1
    const close = closing(text, open)
    const rest = text.slice(close + 1)
    const start = /\n(return\s|begin atomic\s|as \$\$)/.exec(rest)
    if (start === null) continue
    const head = rest.slice(0, start.index)
    const from = start.index + start[0].length
    const isExpression = start[1]?.startsWith('return') === true
    const end = isExpression
      ? endOfStatement(rest, from)
      : start[1]?.startsWith('begin') === true
        ? rest.indexOf('\nend;', from)
        : rest.indexOf('$$', from)
    const table = /returns table \(([\s\S]*?)\)\s*\n/.exec(head)?.[1]
    const name = match[1] ?? ''
    const of: SqlFunction = {
      name,
      parameters: splitTop(text.slice(open + 1, close))
        .filter(p => p !== '')
        .map(parameterOf),
      columns: table === undefined ? null : splitTop(table).map(column => column.split(/\s+/)[0] ?? ''),
      isSet: table !== undefined || /returns setof/.test(head),
      language: /language (\w+)/.exec(head)?.[1] ?? '',
      body: rest.slice(from, end).trim().replace(/;$/, ''),
    }
    // Of those of one name, none can be told from its arguments here: none is put in place.
    functions.set(name, functions.has(name) ? { ...of, language: 'overloaded' } : of)
  }
  return functions
}

function parameterOf(text: string) {
  const [, out, name = '', type = '', fallback] =
    /^(out\s+)?(\w+)\s+([\s\S]+?)(?:\s+default\s+([\s\S]+))?$/.exec(text) ?? []
  return { name, type, fallback: fallback ?? null, isOut: out !== undefined }
}

function tablesOf(text: string): Map<string, SqlTable> {
  const tables = new Map<string, SqlTable>()
  for (const match of text.matchAll(/create table lighter\.(\w+) \(/g)) {
    const open = match.index + match[0].length - 1
    const columns = splitTop(text.slice(open + 1, closing(text, open))).flatMap(item => {
      const [, name = '', rest = ''] = /^(\w+)\s+([\s\S]+)$/.exec(item) ?? []
      if (/^(unique|primary|check|constraint|foreign|exclude)$/.test(name)) return []
      const [type = ''] = rest.split(
        /\s+(?:not null|default|check|primary key|references|generated|unique|collate)\b/,
      )
      const fallback = /\bdefault\s+('(?:[^']|'')*'|[\w.+-]+(?:\([^)]*\))?)/.exec(rest)?.[1] ?? null
      return [{ name, type: type.trim(), fallback }]
    })
    tables.set(match[1] ?? '', { columns })
  }
  for (const [, table = '', name = '', rest = ''] of text.matchAll(
    /alter table lighter\.(\w+)\s+add column (\w+) ([^;]+);/g,
  ))
    tables
      .get(table)
      ?.columns.push({ name, type: rest.split(/\s+(?:not null|default|check)\b/)[0] ?? rest, fallback: null })
  return tables
}

/** Place of the character that ends the text which begins at `at`, a quote or a dollar sign; the text is well-formed. */
function endOfString(text: string, at: number): number {
  for (let i = at + 1; ; i++) {
    if (i >= text.length) return text.length
    if (text[i] !== "'") continue
    if (text[i + 1] === "'") i++
    else return i
  }
}

function closing(text: string, open: number): number {
  let depth = 0
  for (let i = open; i < text.length; i++) {
    const c = text[i]
    if (c === "'") i = endOfString(text, i)
    else if (c === '(' || c === '[') depth++
    else if ((c === ')' || c === ']') && --depth === 0) return i
  }
  return text.length
}

function endOfStatement(text: string, from: number): number {
  for (let i = from; i < text.length; i++) {
    if (text[i] === "'") i = endOfString(text, i)
    else if (text[i] === ';') return i
  }
  return text.length
}

/** At the commas that are in no parentheses and no text. */
function splitTop(text: string): string[] {
  const parts: string[] = []
  let start = 0
  for (let i = 0; i < text.length; i++) {
    const c = text[i]
    if (c === "'") i = endOfString(text, i)
    else if (c === '(' || c === '[') i = closing(text, i)
    else if (c === ',') {
      parts.push(text.slice(start, i).trim())
      start = i + 1
    }
  }
  return [...parts, text.slice(start).trim()].filter((part, _, all) => part !== '' || all.length > 1)
}

function isInString(text: string, at: number): boolean {
  let inside = false
  for (let i = 0; i < at; i++) if (text[i] === "'") inside = !inside
  return inside
}

/** Without `-- …` to the end of its line, where that is in no text. */
function withoutComments(text: string): string {
  return text
    .split('\n')
    .map(line => {
      for (let at = line.indexOf('--'); at !== -1; at = line.indexOf('--', at + 2))
        if (!isInString(line, at)) return line.slice(0, at)
      return line
    })
    .join('\n')
}
