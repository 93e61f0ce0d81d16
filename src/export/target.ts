// Where an export goes: a directory, or a prefix of a bucket. A file is there whole or not at all.
import { createWriteStream } from 'node:fs'
import { mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import path from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { StoreConfig } from '../config.ts'
import { LighterError, StoreError } from '../errors.ts'
import { openStore } from '../store/object-store.ts'

export interface ExportTarget {
  readonly name: string
  isEmpty(): Promise<boolean>
  /** Null when there is no such file. @throws {LighterError} `export_target`: it is longer than `maxBytes` */
  read(name: string, maxBytes: number): Promise<Buffer | null>
  /** Of a file that is there; shorter at its end, and empty after it. */
  readRange(name: string, offset: number, length: number): Promise<Buffer>
  /** Replaces it if it is there. @throws what the body throws; then the file is not there, or still the old one */
  write(name: string, body: AsyncIterable<Buffer>): Promise<void>
  close(): void
}

/**
 * @param to a directory, or `s3://bucket/prefix`: with the credentials and at the endpoint of R2_…
 * @throws {LighterError} `export_target` it is where pg-lighter itself keeps payloads
 */
export function openTarget(to: string, config: StoreConfig, partBytes: number): ExportTarget {
  if (!to.startsWith('s3://')) return directory(path.resolve(to))
  const { bucket, rest } = /^s3:\/\/(?<bucket>[^/]+)\/?(?<rest>.*)$/.exec(to)?.groups ?? {}
  if (bucket === undefined || rest === undefined) {
    throw new LighterError('export_target', `${to} is not of the form s3://bucket/prefix`)
  }
  const prefix = rest === '' || rest.endsWith('/') ? rest : `${rest}/`
  if (bucket === config.bucket && prefix.startsWith(`${config.prefix}tenants/`)) {
    throw new LighterError('export_target', `${to} is where pg-lighter keeps the payloads themselves`, {
      hint: 'Export to another prefix, or another bucket.',
    })
  }
  return bucketPrefix({ ...config, bucket, prefix }, partBytes)
}

function directory(folder: string): ExportTarget {
  return {
    name: folder,
    isEmpty: async () => {
      const names = await readdir(folder).catch(error => (isMissing(error) ? [] : Promise.reject(error)))
      // A process that died over its very first file left no more than this.
      return names.every(name => name === 'manifest.json.part')
    },
    read: async (name, maxBytes) => {
      const file = path.join(folder, name)
      const size = await stat(file).then(
        found => found.size,
        error => (isMissing(error) ? null : Promise.reject(error)),
      )
      if (size === null) return null
      if (size > maxBytes) throw tooLong(file, maxBytes)
      return readFile(file)
    },
    readRange: async (name, offset, length) => {
      const file = await open(path.join(folder, name))
      try {
        const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, offset)
        return buffer.subarray(0, bytesRead)
      } finally {
        await file.close()
      }
    },
    write: async (name, body) => {
      const file = path.join(folder, name)
      const part = `${file}.part`
      await mkdir(path.dirname(file), { recursive: true })
      try {
        await pipeline(Readable.from(body, { objectMode: false }), createWriteStream(part, { mode: 0o600 }))
        // On disk before it is said to be there.
        const written = await open(part, 'r+')
        await written.sync().finally(() => written.close())
        await rename(part, file)
      } catch (error) {
        await rm(part, { force: true })
        throw error
      }
    },
    close: () => undefined,
  }
}

function tooLong(name: string, maxBytes: number): LighterError {
  return new LighterError(
    'export_target',
    `${name} has more than ${maxBytes} bytes: it is not one of an export`,
  )
}

const isMissing = (error: unknown) => error instanceof Error && 'code' in error && error.code === 'ENOENT'

function bucketPrefix(config: StoreConfig, partBytes: number): ExportTarget {
  const store = openStore(config)
  return {
    name: `s3://${config.bucket}/${config.prefix}`,
    isEmpty: async () => (await store.list(config.prefix).next()).done === true,
    read: async (name, maxBytes) => {
      try {
        return (await store.get(`${config.prefix}${name}`, undefined, maxBytes)).body
      } catch (error) {
        if (error instanceof StoreError && error.code === 'object_too_large') throw tooLong(name, maxBytes)
        if (error instanceof StoreError && error.code === 'object_not_found') return null
        throw error
      }
    },
    readRange: async (name, offset, length) => {
      try {
        return (await store.get(`${config.prefix}${name}`, { offset, length })).body
      } catch (error) {
        if (error instanceof StoreError && error.code === 'range_not_satisfiable') return Buffer.alloc(0)
        throw error
      }
    },
    write: async (name, body) => {
      const contentType = name.endsWith('.txt')
        ? 'text/plain'
        : name.endsWith('.json')
          ? 'application/json'
          : name.endsWith('.jsonl')
            ? 'application/x-ndjson'
            : 'application/octet-stream'
      await store.sendStream(`${config.prefix}${name}`, { contentType }, Readable.from(body), {
        partBytes,
        // Of an upload that is broken off by a crash the store's own rule takes the parts away.
        onUploadId: () => Promise.resolve(),
      })
    },
    close: () => store.close(),
  }
}
