// What pg-lighter takes, measured. The one home of these figures; test/integration/estimate-truth.test.ts holds estimates made of them
// to what really happens.

/**
 * Bytes of schema lighter in Postgres, with indexes. Measured on the tables of test/support/estimated-tables.ts (500 to 6,000 rows, 6 to 1,200
 * objects), Postgres 18, after a VACUUM; `npm run bench -- size` measures the same on 20,000 and 100,000 rows: 136 to 209 an
 * artifact, everything included.
 */
export const oursBytes = {
  /** Files of some forty tables, which are there however little is stored. */
  fixed: 2_020_000,
  /** In its frame: place, hash, key of its row. */
  artifact: { uuidKey: 117, otherKey: 100 },
  /** A frame: about 64 KiB of text of one tenant and kind. */
  frame: 620,
  /** An object, with its share of the reports. */
  object: 1_400,
  /** An artifact that has an object of its own and no frame, without the object. By its columns and indexes: not measured. */
  looseArtifact: 450,
} as const

/** Bytes in the bucket for a byte of payload: 0.11 of the real mix (docs/performance.md, "Size"), more of what was compressed little in its row. */
export const storedShare = 0.11

/** Defaults of the daemon's settings that decide how many PUTs there are: src/config.ts (a test compares them). */
export const daemonDefaults = {
  maxPackBytes: 8 * 1024 * 1024,
  packTargetBytes: 4 * 1024 * 1024,
  packMinBytes: 64 * 1024,
  batchRows: 2000,
  batchBytes: 16 * 1024 * 1024,
  streamThresholdBytes: 4 * 1024 * 1024,
} as const
