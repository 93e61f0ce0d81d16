// Work on long texts in steps. Node has one thread for everybody, and a text of 32 MiB with five million keys takes
// seconds: between two steps the others are served.

/** Yields after about `stepChars` characters (some milliseconds); returns what it has made. */
export type Steps<T> = Generator<undefined, T>

export const stepChars = 1024 * 1024

export function atOnce<T>(steps: Steps<T>): T {
  for (;;) {
    const step = steps.next()
    if (step.done === true) return step.value
  }
}
