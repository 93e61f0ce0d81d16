// The torture is tested itself: with a bug in a copy of the sources it must fail, and say what kind of bug it is. It
// ends with what it finds first, after ten seconds to a minute; a busy machine has four minutes, twice.
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { repository, runTorture } from './run-torture.ts'

interface Bug {
  what: string
  file: string
  right: string
  wrong: string
  /** What the torture must find of it. */
  finds: 'mismatched' | 'lost' | 'cross_tenant' | 'leaked_objects'
  /** Of the storm: where the verdict finds it. */
  minutes?: number
  /** Not of a row that has a history. */
  ofArtifact?: true
}

const bugs: Bug[] = [
  {
    what: 'rows are rewritten whether they have changed meanwhile or not',
    file: 'src/offload/commit.ts',
    right:
      ' and m.xmin = r.xmin and m.ctid = r.place and m.tableoid = r.tbl and $' +
      "{fileOfSql('m')} = r.file and $" +
      '{serverStartSql} = r.server',
    wrong: '',
    finds: 'mismatched',
  },
  {
    what: 'a compaction deletes the old objects before it has moved what is in them',
    file: 'src/sweeps/rewrite.ts',
    right: '  const moved = await move(context, old, packs)',
    wrong: '  await store.delete(old.map(o => o.key))\n  const moved = await move(context, old, packs)',
    finds: 'lost',
  },
  {
    what: 'a pack mixes tenants',
    file: 'src/offload/pack.ts',
    right: 'item => `$' + '{item.tenantId}/$' + '{item.kind}`',
    wrong: 'item => item.kind',
    finds: 'cross_tenant',
  },
  {
    what: 'a row is offloaded on top of a pointer that its tenant can not follow',
    file: 'src/offload/plan.ts',
    right: 'coalesce(d.lost_pointer, false) as',
    wrong: 'false as',
    finds: 'lost',
  },
  {
    what: 'a request that is sent again is stored again',
    file: 'src/artifacts/put-once.ts',
    right: 'if (idempotency === null) return',
    wrong: 'if (idempotency !== undefined) return',
    finds: 'leaked_objects',
    ofArtifact: true,
  },
  {
    what: 'what may be kept for ever expires, too',
    file: 'src/sweeps/retention.ts',
    right: 'if (group.keepDays === null || group.hold) continue',
    wrong: 'group.keepDays ??= 0',
    finds: 'lost',
    ofArtifact: true,
  },
  {
    what: 'a column of mode whole becomes null, and nothing is put beside it',
    file: 'src/source/modes.ts',
    right:
      'offloadSql: (source, id) => `$' +
      '{ident(source.jsonColumn)} = null, $' +
      '{pointerColumnSql(source)} = $' +
      '{id}`,\n    isOffloadedSql: (source, id) => `$' +
      '{columnSql(source)} is null and m.$' +
      '{pointerColumnSql(source)} = $' +
      '{id}`,',
    wrong:
      'offloadSql: (source, _id) => `$' +
      '{ident(source.jsonColumn)} = null`,\n    isOffloadedSql: (source, _id) => `$' +
      '{columnSql(source)} is null`,',
    finds: 'mismatched',
  },
  {
    what: 'a release does not look at pointer columns',
    file: 'src/source/modes.ts',
    right: "if (source.mode !== 'whole') return inside",
    wrong: 'if (source.mode) return inside',
    finds: 'lost',
  },
  {
    what: 'rows of a detached partition are taken for deleted',
    file: 'src/sweeps/release.ts',
    right: "if (missing.length > 0) {\n    await client.query('commit')",
    wrong: "if (missing.length > 1000) {\n    await client.query('commit')",
    finds: 'lost',
    minutes: 0.7,
  },
  {
    what: 'a tenant is told by the length of its name',
    file: 'src/source/expressions.ts',
    right: "`pg_catalog.format('%s', $" + '{tenantColumnSql(source)})`',
    wrong: "`pg_catalog.format('%s', pg_catalog.length($" + '{tenantColumnSql(source)}))`',
    finds: 'cross_tenant',
  },
]

/** What the torture needs of the repository, with the one expression changed. */
async function copyWithBug({ file, right, wrong }: Bug): Promise<string> {
  const copy = await mkdtemp(path.join(tmpdir(), 'pg-lighter-bug-'))
  onTestFinished(() => rm(copy, { recursive: true, force: true }))
  for (const part of ['src', 'sql', 'torture', 'test/support', 'package.json'])
    await cp(path.join(repository, part), path.join(copy, part), { recursive: true })
  await symlink(path.join(repository, 'node_modules'), path.join(copy, 'node_modules'))
  const source = await readFile(path.join(copy, file), 'utf8')
  expect(source.split(right), `${file} has the expression once`).toHaveLength(2)
  await writeFile(
    path.join(copy, file),
    source.replace(right, () => wrong),
  )
  return copy
}

test.each(bugs)(
  '$what: it finds rows that are $finds',
  async bug => {
    const copy = await copyWithBug(bug)
    const run = (seed: number) =>
      runTorture(copy, ['--minutes', String(bug.minutes ?? 4), '--seed', String(seed)])
    const first = await run(1)
    const seed = first.report[bug.finds] > 0 ? 1 : 2
    const { code, report, stderr } = seed === 1 ? first : await run(seed)
    expect(report[bug.finds], stderr).toBeGreaterThan(0)
    expect(code).toBe(1)
    expect(stderr).toContain(`seed ${seed} failed`)
    if (bug.ofArtifact) return
    const found = report.findings.filter(({ kind }) => kind === bug.finds)
    expect(found.map(({ history }) => history.join('\n')).join('\n')).toContain('insert')
  },
  900_000,
)
