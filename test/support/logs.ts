// What daemons and commands log during a run is kept until its end, and then searched for what must not be there.
import { appendFileSync, openSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { inject } from 'vitest'

/** Of the process that reports at the end: where to look, and for what. */
export const logsVariable = 'PG_LIGHTER_TEST_LOGS'
export const secretsVariable = 'PG_LIGHTER_TEST_SECRETS'

/** Payloads of tests look like these; what we say of them does not. */
const payloadMarkers = [/tool_interactions\\*"\s*:\s*[[{]/, /~{40}/, /(large ){10}/]

const fileOf = (name: string) => path.join(inject('servers').logs, name)

/** Adds to the log of this process. */
export function keepLog(text: string): void {
  appendFileSync(fileOf(`${process.pid}.log`), text)
}

/** A file for the output of a child process. */
export function openLog(name: string): number {
  return openSync(fileOf(`${process.pid}-${name}.log`), 'a')
}

/** Each line with a secret or a payload in it: which, and where; of the line only as much as tells what wrote it. */
export function findLeaks(directory: string, secrets: string[]): string[] {
  const leaks: string[] = []
  for (const name of readdirSync(directory)) {
    for (const line of readFileSync(path.join(directory, name), 'utf8').split('\n')) {
      const secret = secrets.findIndex(each => line.includes(each))
      const marker = payloadMarkers.find(each => each.test(line))
      if (secret >= 0)
        leaks.push(`${name}: secret ${secret + 1} of ${secrets.length} in a line of ${line.length}`)
      if (marker !== undefined) leaks.push(`${name}: a payload (${marker.source}) in: ${line.slice(0, 300)}`)
    }
  }
  return leaks
}
