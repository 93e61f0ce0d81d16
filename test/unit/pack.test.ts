// Packs are plain compressed JSON-lines files, and any artifact is a range of one frame of them.
import { createHash } from 'node:crypto'
import { gunzipSync, zstdDecompressSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import type { Codec, PackConfig } from '../../src/config.ts'
import { artifactInFrame, asTenantId, newArtifactId } from '../../src/ids.ts'
import { buildObjects, type Location, type PackItem } from '../../src/offload/pack.ts'
import { framePayloads, frameTextBytes } from '../../src/store/pack-format.ts'

const config = (changes: Partial<PackConfig> = {}): PackConfig => ({
  packing: true,
  codec: 'zstd',
  maxPackBytes: 8 * 1024 * 1024,
  ...changes,
})
const tenants = ['11111111-1111-4111-8111-111111111111', '22222222-2222-4222-8222-222222222222'].map(
  asTenantId,
)
const now = new Date('2026-03-04T23:59:59Z')

function items(count: number, textOf: (n: number) => string, kind = 'kind'): PackItem[] {
  return Array.from({ length: count }, (_, n) => ({
    tenantId: tenants[n % 2] ?? asTenantId(''),
    kind,
    artifactId: newArtifactId(),
    bytes: Buffer.from(textOf(n)),
    origin: {
      sourceId: 1,
      rowId: `${n}`,
      uuidKey: false,
      field: null,
      contentType: 'application/json',
      extension: 'json',
      entityType: null,
      entityId: null,
      refersTo: [],
    },
  }))
}

/** Where in the object, and in its frame. */
function placeOf(location: Location | undefined) {
  const frame = location?.frame
  return {
    byteOffset: frame?.byteOffset ?? -1,
    byteLength: frame?.byteLength ?? -1,
    frameOffset: frame?.payloads[location?.ordinal ?? -1]?.place ?? -1,
  }
}

const text = (n: number) => `{"n": ${n}, "text": "${'é'.repeat(n % 700)}"}`
const decode = { zstd: zstdDecompressSync, gzip: gunzipSync, none: (frame: Buffer) => frame }

describe.for<Codec>(['zstd', 'gzip', 'none'])('a pack (%s)', codec => {
  test('holds every artifact of its tenant and kind where its location says', async () => {
    const all = [...items(500, text), ...items(50, text, 'other')]
    const objects = await buildObjects(all, config({ codec }), 'p/', now)
    expect(objects).toHaveLength(4)
    let found = 0
    for (const object of objects) {
      expect(object.key).toMatch(
        new RegExp(
          `^p/tenants/${object.tenantId}/${object.kind}/2026/03/04/[0-9a-f-]{36}\\.jsonl(\\.zst|\\.gz)?$`,
        ),
      )
      for (const item of all) {
        const location = object.locations.get(item.artifactId)
        if (location === undefined) continue
        found++
        expect([item.tenantId, item.kind]).toEqual([object.tenantId, object.kind])
        const { byteOffset, byteLength, frameOffset: at } = placeOf(location)
        const frame = decode[codec](object.body.subarray(byteOffset, byteOffset + byteLength))
        expect(location.frame).toMatchObject({ tenantId: item.tenantId, kind: item.kind, key: object.key })
        expect(location.frame?.payloads[location.ordinal]?.origin).toBe(item.origin)
        expect(location.frame && artifactInFrame(location.frame.id, location.ordinal)).toBe(
          location.artifactId,
        )
        expect(frame.subarray(at, at + location.sizeBytes)).toEqual(item.bytes)
        expect(location.sha256).toBe(createHash('sha256').update(item.bytes).digest('hex'))
        expect(frame.length).toBeLessThanOrEqual(frameTextBytes)
      }
    }
    expect(found).toBe(all.length)
  })

  test('is, frame after frame, a JSON-lines file of its payloads in order', async () => {
    const all = items(400, text).filter(item => item.tenantId === tenants[0])
    const [object, ...others] = await buildObjects(all, config({ codec }), '', now)
    expect(others).toEqual([])
    const frames = new Map(
      [...(object?.locations.values() ?? [])].map(placeOf).map(p => [p.byteOffset, p.byteLength]),
    )
    expect(frames.size).toBeGreaterThan(1)
    const whole = [...frames].map(([start, length]) =>
      decode[codec](object?.body.subarray(start, start + length) ?? Buffer.alloc(0)),
    )
    expect(Buffer.concat(whole).toString()).toBe(all.map(item => `${item.bytes}\n`).join(''))
    expect([...frames.values()].reduce((a, b) => a + b, 0)).toBe(object?.body.length)
    // gunzip reads concatenated members by itself, as zcat does.
    if (codec === 'gzip')
      expect(gunzipSync(object?.body ?? '').toString()).toBe(Buffer.concat(whole).toString())
  })
})

test('a limit on bytes closes a pack', async () => {
  const all = items(100, () => `"${'x'.repeat(998)}"`).map(item => ({
    ...item,
    tenantId: tenants[0] ?? item.tenantId,
  }))
  const counts = async (changes: Partial<PackConfig>) =>
    (await buildObjects(all, config(changes), '', now)).map(object => object.locations.size)
  expect(await counts({ maxPackBytes: 45_000 })).toEqual([45, 45, 10])
  expect(await counts({ packing: false })).toEqual(all.map(() => 1))
})

test('a payload longer than a frame has a frame of its own', async () => {
  const sizes = [100, 200_000, 100]
  const all = sizes.map(size => ({ ...(items(1, () => `"${'y'.repeat(size)}"`)[0] as PackItem) }))
  const [object] = await buildObjects(all, config(), '', now)
  const locations = all.map(item => object?.locations.get(item.artifactId))
  expect(locations.map(l => placeOf(l).frameOffset)).toEqual([0, 0, 0])
  expect(new Set(locations.map(l => placeOf(l).byteOffset)).size).toBe(3)
})

test('without packs each artifact is a loose object, compressed only if that makes it smaller', async () => {
  const loose = async (body: string, changes: Partial<PackConfig> = {}) => {
    const [object] = await buildObjects(
      items(1, () => body),
      config({ ...changes, packing: false }),
      '',
      now,
    )
    return object
  }
  const long = await loose(`"${'z'.repeat(5000)}"`)
  expect(long).toMatchObject({ contentEncoding: 'zstd', contentType: 'application/json' })
  expect(long?.key).toMatch(/\.json$/)
  expect(long?.body.length).toBeLessThan(500)
  const short = await loose('[1]')
  expect(short).toMatchObject({ contentEncoding: null })
  expect(short?.body.toString()).toBe('[1]')
  const plain = await loose(`"${'z'.repeat(5000)}"`, { codec: 'none' })
  expect(plain).toMatchObject({ contentEncoding: null })
  expect(plain?.body.length).toBe(5002)
})

test('a frame has payloads of one source and field, and so many at most', async () => {
  const all = items(2 * framePayloads + 2, () => '[]').map((item, n) => ({
    ...item,
    tenantId: tenants[0] ?? item.tenantId,
    origin: { ...item.origin, field: n % 2 === 0 ? 'tool_interactions' : null },
  }))
  const [object] = await buildObjects(all, config(), '', now)
  const frames = new Set([...(object?.locations.values() ?? [])].map(l => l.frame))
  expect([...frames].map(frame => frame?.payloads.length)).toEqual([framePayloads, 1, framePayloads, 1])
  for (const frame of frames) {
    expect(new Set(frame?.payloads.map(p => p.origin.field)).size).toBe(1)
    expect(frame?.id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{8}0000$/)
  }
})
