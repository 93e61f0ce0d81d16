#!/usr/bin/env node
// Where the command `lighter` begins. It imports nothing else before it knows that this Node is new enough: an older
// one stumbles over what a module exports, and says nothing that helps.
import { nodeTooOld } from '../node-version.ts'

const problem = nodeTooOld('lighter')
if (problem === null) {
  const { runProgram } = await import('./program.ts')
  await runProgram()
} else {
  process.stderr.write(
    `error: ${problem}\n` +
      'hint: Install a later Node, or take one from npm, in the folder that has the package: npm install node@24\n',
  )
  process.exitCode = 1
}
