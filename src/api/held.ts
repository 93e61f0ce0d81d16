// What is tied to the life of an answer.
import type { FastifyReply } from 'fastify'
import { ApiError } from './errors.ts'

/**
 * A slot that is given back when the answer has left, or its client has.
 * @throws what waiting for the slot throws; {ApiError} when the client has left meanwhile: nothing is to be done for it
 */
export async function heldUntilAnswered(reply: FastifyReply, slot: Promise<() => void>): Promise<void> {
  const release = await slot
  if (reply.raw.closed || reply.raw.destroyed) {
    release()
    throw new ApiError(400, 'client_gone', 'the client is gone')
  }
  reply.raw.once('close', release)
}

/** Aborted when the client is gone before it has its answer. */
export function goneSignal(reply: FastifyReply): AbortSignal {
  const gone = new AbortController()
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) gone.abort(new Error('the client is gone'))
  })
  return gone.signal
}
