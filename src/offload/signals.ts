// Named points in the way of a payload. Tests wait on them, or kill the process there; in production
// nobody listens.

export type SignalPoint =
  | 'after-claim'
  | 'after-split'
  | 'after-group'
  | 'after-plan'
  | 'after-register'
  | 'before-stream'
  | 'mid-multipart'
  | 'before-complete'
  | 'after-upload'
  | 'before-commit'
  | 'after-commit'
  | 'after-return'

export type Signal = (point: SignalPoint) => void | Promise<void>
