// Stands in for the object store where its variables are not set: every request fails, and says why.
import { StoreError } from '../errors.ts'
import type { ObjectStore } from './object-store.ts'

/** @param missing names of the variables */
export function missingStore(missing: string[]): ObjectStore {
  const fail = () => {
    throw new StoreError('store_not_configured', `there is no object store: set ${missing.join(', ')}`)
  }
  const refuse = async () => fail()
  return {
    bucket: '',
    prefix: '',
    put: refuse,
    sendStream: refuse,
    abortMultipart: refuse,
    get: refuse,
    getStream: refuse,
    presign: refuse,
    head: refuse,
    delete: refuse,
    // biome-ignore lint/correctness/useYield: it fails before it has anything to yield
    async *list() {
      fail()
    },
    check: refuse,
    proveWrites: refuse,
    close: () => undefined,
  }
}
