// The ports of the last run, kept with the data: connection strings pasted elsewhere go on working.
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import path from 'node:path'
import { z } from 'zod'

const port = z.int().min(1).max(65_535)
const portsSchema = z.object({ postgres: port, r2: port })
export type Ports = z.infer<typeof portsSchema>

const fileOf = (dir: string) => path.join(dir, 'ports.json')

/** Those that are free now; a file that is missing or damaged says nothing. */
export async function lastPorts(dir: string): Promise<Partial<Ports>> {
  const text = await readFile(fileOf(dir), 'utf8').catch(() => undefined)
  if (text === undefined) return {}
  const parsed = portsSchema.safeParse(parseJson(text))
  if (!parsed.success) return {}
  const { postgres, r2 } = parsed.data
  const [postgresFree, r2Free] = await Promise.all([isFree(postgres), isFree(r2)])
  return { ...(postgresFree ? { postgres } : {}), ...(r2Free ? { r2 } : {}) }
}

export async function rememberPorts(dir: string, ports: Ports): Promise<void> {
  await mkdir(dir, { recursive: true })
  const file = fileOf(dir)
  await writeFile(`${file}.new`, `${JSON.stringify(ports)}\n`)
  await rename(`${file}.new`, file)
}

export function freePort(): Promise<number> {
  return bind(0)
}

function isFree(wanted: number): Promise<boolean> {
  return bind(wanted).then(
    () => true,
    () => false,
  )
}

/** Takes the port and gives it back; 0: any. */
function bind(wanted: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer()
    probe.once('error', reject)
    probe.listen(wanted, '127.0.0.1', () => {
      const address = probe.address()
      probe.close(() =>
        typeof address === 'object' && address !== null
          ? resolve(address.port)
          : reject(new Error('no port')),
      )
    })
  })
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
