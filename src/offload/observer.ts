// What the pipeline tells of itself while it works. It knows neither metrics nor traces: see src/telemetry/.
import type { TenantId } from '../ids.ts'

export const stepNames = ['claim', 'group', 'plan', 'pack', 'register', 'upload', 'commit', 'stream'] as const
export type StepName = (typeof stepNames)[number]

export interface Observer {
  /**
   * Runs a claimed batch.
   * @param claimMs how long its claim took, which has just ended
   */
  batch<T>(rows: number, claimMs: number, run: (work: Work) => Promise<T>): Promise<T>
  /** Told right after each commit, before anything else may fail: what it is told is so, and is told once. */
  committed(commit: Committed): void
  /** Claimed rows that are back in the queue, wait for others of their tenant, or were given up. */
  returned(rows: { retried: number; deadLetters: number; putBack: number; waiting: number }): void
}

/** A batch, or a part of one. */
export interface Work {
  /** Runs a part of it, and notes how long that took and whether it failed. */
  part<T>(name: StepName | 'large row' | 'object', run: (part: Work) => Promise<T>): Promise<T>
  /** Counts, bytes and names; never anything of a payload. */
  note(facts: Record<string, number | string>): void
  noteTenant(tenantId: TenantId): void
  /** Bytes of payloads and objects that it has in memory from now on. */
  holds(bytes: number): void
}

export interface Committed {
  offloaded: number
  nothing: number
  gone: number
  changed: number
  artifacts: { kind: string; tenantId: TenantId | null; payloadBytes: number }[]
  /** Each object once, however many commits share it. */
  objects: { kind: string; bytes: number }[]
  latencies: Latency[]
}

/** Rows by the time from when they were due to this commit: more than 2^((bucket - 1) / 4) ms, up to 2^(bucket / 4) ms. */
export interface Latency {
  live: boolean
  bucket: number
  rows: number
}
