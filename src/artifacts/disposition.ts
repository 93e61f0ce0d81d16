// What a browser may do with a payload that it was sent to.

/** Types that a browser shows without running anything in them. */
const harmless =
  /^(image\/(png|jpeg|gif|webp|avif)|text\/plain|application\/(json|pdf)|audio\/[a-z0-9.+-]+|video\/[a-z0-9.+-]+)\s*(;|$)/i

/** The Content-Disposition header: shown if that is harmless, else only saved. */
export function dispositionOf(contentType: string | null, id: string): string {
  return harmless.test(contentType ?? '') ? 'inline' : `attachment; filename="${id}"`
}
