#!/usr/bin/env node
// Where the command `lighter` begins. It imports nothing of ours before it knows that this Node can: an older one
// stumbles over what a module exports, and says nothing that helps.
import { readFileSync } from 'node:fs'

const manifest: { engines: { node: string } } = JSON.parse(
  readFileSync(new URL('../../package.json', import.meta.url), 'utf8'),
)
const needed = manifest.engines.node.replace('>=', '')
const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
const [neededMajor = 0, neededMinor = 0] = needed.split('.').map(Number)

if (major > neededMajor || (major === neededMajor && minor >= neededMinor)) {
  const { runProgram } = await import('./program.ts')
  await runProgram()
} else {
  process.stderr.write(
    `error: lighter needs Node ${needed} or later, this is ${process.versions.node}\n` +
      'hint: Install a later Node, or run it with one from npm: npx -p node@24 -p pg-lighter lighter\n',
  )
  process.exitCode = 1
}
