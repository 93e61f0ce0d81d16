// Which Node the package needs for what. This file imports nothing, so that an older Node can read it and say so.

/** For everything but the client over HTTP: it compresses with zstd. That client needs `engines.node` of package.json. */
const neededNode = '22.18'

/** Null if this Node has all that is needed, else what is wrong. @param what the function or command that was called */
export function nodeTooOld(what: string): string | null {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  const [neededMajor = 0, neededMinor = 0] = neededNode.split('.').map(Number)
  if (major > neededMajor || (major === neededMajor && minor >= neededMinor)) return null
  return `${what} needs Node ${neededNode} or later, this is ${process.versions.node}`
}
