// Tables in the shape of real products: attached as docs/schemas.md says, written as their applications write, read back,
// and restored.
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { lighterOk } from '../support/black-box.ts'
import { blocksOf, readDoc } from '../support/doc-blocks.ts'
import { column } from '../support/sql.ts'
import {
  dumpOf,
  expectAsWritten,
  expectAttachedAgain,
  expectClientReads,
  expectCommandReads,
  expectLightRowsUntouched,
  expectOnlyLightRowsInline,
  expectReadsAlike,
  expectSweepsSafe,
  expectTenantsApart,
  expectUndone,
  openZoo,
  versionsOf,
} from './run.ts'
import { shapes } from './shapes/all.ts'

describe.each(shapes)('$name', shape => {
  let zoo: Awaited<ReturnType<typeof openZoo>>
  let versions: { app: Map<string, string>; twin: Map<string, string> }

  beforeAll(async () => {
    zoo = await openZoo(shape)
    versions = { app: await versionsOf(zoo, 'public'), twin: await versionsOf(zoo, 'twin') }
  })
  afterAll(() => zoo?.close())

  test('rows of before, and every write of the application, read back as written', async () => {
    expect(await dumpOf(zoo, 'public')).toEqual(await dumpOf(zoo, 'twin'))
    await lighterOk(zoo.environment, ['backfill'])
    await zoo.settled()
    await expectAsWritten(zoo)
    for (const [what, write] of Object.entries(shape.writes)) {
      await zoo.write(app => write(app, 1))
      await zoo.settled()
      await expectAsWritten(zoo).catch(cause => {
        throw new Error(`after "${what}": ${cause.message}`, { cause })
      })
    }
    for (const write of Object.values(shape.writes)) await zoo.write(app => write(app, 2))
    await expectAsWritten(zoo)
    await zoo.settled()
    await expectAsWritten(zoo)
  })

  test('exactly the heavy values have left, and nothing failed', async () => {
    await expectOnlyLightRowsInline(zoo)
    await expectLightRowsUntouched(zoo, versions)
    await expectReadsAlike(zoo)
    expect(await column(zoo.environment.admin, 'select last_error from lighter.failed_jobs')).toEqual([])
  })

  test('each tenant has its own artifacts, and no other sees them', () => expectTenantsApart(zoo))

  test('the library reads every row that has left', () => expectClientReads(zoo))

  test('the command of the page prints a row', () => expectCommandReads(zoo))

  test(`attack: ${shape.attack.name}`, async () => {
    await shape.attack.run(zoo, zoo.environment)
    await zoo.settled()
    await expectAsWritten(zoo)
  })

  test('sweeps delete what no row points to, and nothing else', () => expectSweepsSafe(zoo))

  test('detached and attached again, every row reads as before', () => expectAttachedAgain(zoo))

  test('restore and detach leave the tables as if nothing had ever been attached', () =>
    expectUndone(zoo, zoo.before))
})

test('docs/schemas.md attaches nothing that is not tried here', () => {
  const attached = blocksOf(readDoc('schemas.md')).filter(block => block.text.includes('lighter.attach('))
  expect(new Set(attached.map(block => block.heading))).toEqual(new Set(shapes.map(shape => shape.name)))
})
