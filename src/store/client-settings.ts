// All that the SDK would else look up in AWS_… variables, in ~/.aws/config or in the profile of AWS_PROFILE. Where the
// bucket is and how it is spoken to is set by R2_… and nothing else: a machine's settings for AWS must not change it.
import type { S3ClientConfig } from '@aws-sdk/client-s3'

export const nothingOfTheEnvironment = {
  // AWS_USE_FIPS_ENDPOINT, AWS_USE_DUALSTACK_ENDPOINT: with an endpoint of our own every request would fail.
  useFipsEndpoint: false,
  useDualstackEndpoint: false,
  useAccelerateEndpoint: false,
  useGlobalEndpoint: false,
  // AWS_DEFAULTS_MODE
  defaultsMode: 'standard',
  // AWS_AUTH_SCHEME_PREFERENCE, AWS_SIGV4A_SIGNING_REGION_SET
  authSchemePreference: ['sigv4'],
  sigv4aSigningRegionSet: [],
  // AWS_S3_DISABLE_EXPRESS_SESSION_AUTH, AWS_S3_USE_ARN_REGION, AWS_S3_DISABLE_MULTIREGION_ACCESS_POINTS
  disableS3ExpressSessionAuth: true,
  useArnRegion: false,
  disableMultiregionAccessPoints: true,
  // AWS_SDK_UA_APP_ID
  userAgentAppId: async () => undefined,
} satisfies Partial<S3ClientConfig>
