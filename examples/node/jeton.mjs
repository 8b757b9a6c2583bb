// The token service as promises, from the contract in proto/.

import { fileURLToPath } from 'node:url'
import grpc from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'

// Every call of the service may be repeated: a lost reply does no harm.
const retryPolicy = {
  maxAttempts: 5,
  initialBackoff: '0.1s',
  maxBackoff: '2s',
  backoffMultiplier: 2,
  retryableStatusCodes: ['UNAVAILABLE'],
}
const name = [{ service: 'jeton.token.v1.TokenService' }]
const serviceConfig = { loadBalancingConfig: [], methodConfig: [{ name, retryPolicy }] }

export function connect(address, credentials) {
  const includeDirs = [fileURLToPath(new URL('../../proto', import.meta.url))]
  const loaded = loadSync('jeton/token/v1/token_service.proto', { includeDirs, keepCase: true, defaults: true })
  const { TokenService } = grpc.loadPackageDefinition(loaded).jeton.token.v1
  const options = { 'grpc.service_config': JSON.stringify(serviceConfig) }
  const client = new TokenService(address, credentials, options)
  const call = (method, request, seconds = 10) =>
    new Promise((resolve, reject) => {
      const metadata = new grpc.Metadata({ waitForReady: true })
      const deadline = Date.now() + seconds * 1000
      client[method](request, metadata, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)))
    })
  return { call }
}
