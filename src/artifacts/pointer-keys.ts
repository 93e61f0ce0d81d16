// Names of the pointers in a row. Reserved: the application may copy them, not invent them. The client in browsers
// needs them too, so nothing is imported here.
export const metadataRefKey = 'artifact_metadata_ref'
export const metadataKindKey = 'artifact_metadata_kind'
/** Only of a pointer that stands for elements of an array: how many, and of several runs the number of the first. */
export const elementCountKey = 'artifact_metadata_count'
export const elementFromKey = 'artifact_metadata_from'
export const fieldRefKey = (field: string) => `${field}_ref`
export const fieldCountKey = (field: string) => `${field}_count`
/** The one member of a stub, which stands in the place of a value. */
export const stubKey = 'artifact_ref'
