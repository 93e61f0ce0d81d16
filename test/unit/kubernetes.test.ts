// The manifests of deploy/kubernetes: valid by the schemas of Kubernetes and of the operators, and true of this version.
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { ExternalSecret } from '@kubernetes-models/external-secrets/external-secrets.io/v1/ExternalSecret'
import { ServiceMonitor } from '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor'
import { Deployment } from 'kubernetes-models/apps/v1/Deployment'
import { Job } from 'kubernetes-models/batch/v1/Job'
import { NetworkPolicy } from 'kubernetes-models/networking.k8s.io/v1/NetworkPolicy'
import { PodDisruptionBudget } from 'kubernetes-models/policy/v1/PodDisruptionBudget'
import { ConfigMap } from 'kubernetes-models/v1/ConfigMap'
import { Namespace } from 'kubernetes-models/v1/Namespace'
import { Secret } from 'kubernetes-models/v1/Secret'
import { Service } from 'kubernetes-models/v1/Service'
import { ServiceAccount } from 'kubernetes-models/v1/ServiceAccount'
import { describe, expect, onTestFinished, test } from 'vitest'
import { parse, parseAllDocuments } from 'yaml'
import { environmentSchema, loadAdminDatabaseUrl, loadConfig, secretVariables } from '../../src/config.ts'

const folder = path.join(import.meta.dirname, '..', '..', 'deploy', 'kubernetes')
// biome-ignore lint/suspicious/noExplicitAny: manifests are looked into after their schema has accepted them
type Manifest = any

const files = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter(name =>
  name.endsWith('.yaml'),
)
const manifests: { file: string; manifest: Manifest }[] = files
  .filter(file => file !== 'kustomization.yaml')
  .flatMap(file =>
    parseAllDocuments(readFileSync(path.join(folder, file), 'utf8')).map(each => ({
      file,
      manifest: each.toJS(),
    })),
  )
const kustomization: { resources: string[]; images: { name: string; newName: string; newTag: string }[] } =
  parse(readFileSync(path.join(folder, 'kustomization.yaml'), 'utf8'))

const models = {
  'apps/v1 Deployment': Deployment,
  'batch/v1 Job': Job,
  'external-secrets.io/v1 ExternalSecret': ExternalSecret,
  'monitoring.coreos.com/v1 ServiceMonitor': ServiceMonitor,
  'networking.k8s.io/v1 NetworkPolicy': NetworkPolicy,
  'policy/v1 PodDisruptionBudget': PodDisruptionBudget,
  'v1 ConfigMap': ConfigMap,
  'v1 Namespace': Namespace,
  'v1 Secret': Secret,
  'v1 Service': Service,
  'v1 ServiceAccount': ServiceAccount,
} as Record<string, new (data: Manifest) => { validate(): void }>

function only(kind: string, name?: string): Manifest {
  const found = manifests.filter(
    ({ manifest }) => manifest.kind === kind && (name === undefined || manifest.metadata.name === name),
  )
  if (found.length !== 1) throw new Error(`${found.length} manifests of ${kind} ${name ?? ''}`)
  return found[0]?.manifest
}

const deployment = only('Deployment')
const job = only('Job')
const pods = [deployment.spec.template, job.spec.template]

test.for(manifests)('$manifest.kind in $file is valid', ({ manifest }) => {
  const model = models[`${manifest.apiVersion} ${manifest.kind}`]
  if (model === undefined) throw new Error(`no schema of ${manifest.apiVersion} ${manifest.kind}`)
  expect(() => new model(manifest).validate()).not.toThrow()
  if (manifest.kind !== 'Namespace') expect(manifest.metadata.namespace).toBe('lighter')
})

test('the schemas do refuse what is wrong', () => {
  const misspelt = structuredClone(deployment)
  misspelt.spec.replicas = 'two'
  expect(() => new Deployment(misspelt).validate()).toThrow(/replicas/)
  const monitor = structuredClone(only('ServiceMonitor'))
  delete monitor.spec.selector
  expect(() => new ServiceMonitor(monitor).validate()).toThrow(/selector/)
})

test('all is applied together but for the job, the examples and what needs an operator', () => {
  for (const resource of kustomization.resources)
    expect(existsSync(path.join(folder, resource)), resource).toBe(true)
  const apart = files.filter(file => file !== 'kustomization.yaml' && !kustomization.resources.includes(file))
  expect(apart.sort()).toEqual([
    'examples/external-secrets.yaml',
    'examples/secrets.yaml',
    'migrate-job.yaml',
    'service-monitor.yaml',
  ])
})

test('the job migrates with the very image of the daemons', () => {
  const [image] = kustomization.images
  expect(deployment.spec.template.spec.containers[0].image).toBe(image?.name)
  expect(job.spec.template.spec.containers[0].image).toBe(`${image?.newName}:${image?.newTag}`)
})

test.for(pods)('the pod of $metadata.labels keeps to the restricted standard', ({ spec }) => {
  expect(spec).toMatchObject({
    automountServiceAccountToken: false,
    securityContext: { runAsNonRoot: true, runAsUser: 1000, seccompProfile: { type: 'RuntimeDefault' } },
  })
  for (const container of spec.containers) {
    expect(container.securityContext).toEqual({
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] },
    })
    expect(container.resources).toMatchObject({
      requests: { memory: expect.any(String) },
      limits: { memory: expect.any(String) },
    })
  }
})

test('probes ask what the API serves on the port that the service names', () => {
  const [container] = deployment.spec.template.spec.containers
  const { startupProbe, livenessProbe, readinessProbe } = container
  expect(startupProbe.httpGet).toEqual({ path: '/healthz', port: 'http' })
  expect(livenessProbe.httpGet).toEqual({ path: '/healthz', port: 'http' })
  expect(readinessProbe.httpGet).toEqual({ path: '/readyz', port: 'http' })
  expect(container.ports).toEqual([{ name: 'http', containerPort: 4001 }])
  expect(only('Service').spec.ports[0].targetPort).toBe('http')
  expect(only('ServiceMonitor').spec.endpoints[0]).toMatchObject({ port: 'http', path: '/metrics' })
})

test('selectors find the pods that they are for', () => {
  const { labels } = deployment.spec.template.metadata
  for (const selector of [
    deployment.spec.selector.matchLabels,
    only('Service').spec.selector,
    only('PodDisruptionBudget').spec.selector.matchLabels,
    only('NetworkPolicy').spec.podSelector.matchLabels,
  ])
    expect(labels).toMatchObject(selector)
  expect(only('Service').metadata.labels).toMatchObject(only('ServiceMonitor').spec.selector.matchLabels)
})

test('there is time for a clean stop', () => {
  const ms = environmentSchema.shape.SHUTDOWN_TIMEOUT_MS.parse(undefined)
  expect(deployment.spec.template.spec.terminationGracePeriodSeconds * 1000).toBeGreaterThan(ms)
})

describe('configuration', () => {
  const data = (name: string) => only('Secret', name).stringData as Record<string, string>

  test('both kinds of example make the same secrets', () => {
    for (const name of ['lighter', 'lighter-admin']) {
      const keys = only('ExternalSecret', name).spec.data.map((each: Manifest) => each.secretKey)
      expect(keys.sort()).toEqual(Object.keys(data(name)).sort())
    }
    const { credentials } = only('ServiceMonitor').spec.endpoints[0].authorization
    expect(data(credentials.name)).toHaveProperty(credentials.key)
  })

  /** The environment of a container, with its secrets mounted below a folder of this machine. */
  function environmentIn(pod: Manifest): Record<string, string> {
    const root = mkdtempSync(path.join(tmpdir(), 'pg-lighter-kubernetes-'))
    onTestFinished(() => rmSync(root, { recursive: true, force: true }))
    const [container] = pod.spec.containers
    for (const { name, mountPath } of container.volumeMounts) {
      const { secret } = pod.spec.volumes.find((volume: Manifest) => volume.name === name)
      if (secret === undefined) continue
      mkdirSync(path.join(root, mountPath), { recursive: true })
      for (const [key, value] of Object.entries(data(secret.secretName)))
        writeFileSync(path.join(root, mountPath, key), value)
    }
    const env: Record<string, string> = {}
    for (const { configMapRef } of container.envFrom ?? [])
      Object.assign(env, only('ConfigMap', configMapRef.name).data)
    for (const { name, value } of container.env)
      env[name] = name.endsWith('_FILE') ? path.join(root, value) : value
    return env
  }

  test('every variable exists, and those with secrets come from files', () => {
    for (const name of pods.flatMap(pod => Object.keys(environmentIn(pod)))) {
      const variable = name.replace(/_FILE$/, '')
      expect(variable in environmentSchema.shape, name).toBe(true)
      expect(name.endsWith('_FILE'), name).toBe(secretVariables.some(secret => secret === variable))
    }
  })

  test('the daemon and the migration take the values of the examples', () => {
    const config = loadConfig({ API_HOST: '0.0.0.0', ...environmentIn(deployment.spec.template) })
    expect(config.databaseUrl).toBe(data('lighter')['database-url'])
    expect(config.api.auth).toEqual({ mode: 'service' })
    expect(loadAdminDatabaseUrl(environmentIn(job.spec.template))).toBe(
      data('lighter-admin')['admin-database-url'],
    )
  })
})
