// An API that checks access tokens: by Introspect, or with CHECK=jwks by itself.
//
//     $ npm install @grpc/grpc-js @grpc/proto-loader jose
//     $ CLIENT_ID=orders CLIENT_SECRET=jcs_... node examples/node/server.mjs https://orders.example
//     serving on 127.0.0.1:8000

import http from 'node:http'
import grpc from '@grpc/grpc-js'
import { createRemoteJWKSet, errors, jwtVerify } from 'jose'
import { connect } from './jeton.mjs'

const { CLIENT_ID: client_id, CLIENT_SECRET: client_secret } = process.env
const address = process.env.JETON_ADDRESS ?? '127.0.0.1:50051'
const issuer = process.env.JETON_ISSUER ?? `http://${address}`
// The algorithm of the service (keys.algorithm): never taken from the token.
const algorithms = [process.env.ALGORITHM ?? 'EdDSA']
const audience = process.argv[2]

// A check that sees every revocation. The service returns only active tokens for this API.
function introspect() {
  const service = connect(address, grpc.credentials.createInsecure())
  return async (token) => {
    const answer = await service.call('Introspect', { client_id, client_secret, token }, 2)
    return answer.active ? answer : undefined
  }
}

// A check without a call. It does not see revocations: a token is accepted until it expires.
function verifyLocally() {
  const keys = createRemoteJWKSet(new URL(`${issuer}/.well-known/jwks.json`), { cacheMaxAge: 600_000 })
  const options = { issuer, audience, algorithms, typ: 'at+jwt', clockTolerance: 5, requiredClaims: ['exp', 'nbf'] }
  const refusals = ['ERR_JWT_', 'ERR_JWS_', 'ERR_JOSE_ALG_', 'ERR_JWKS_NO_MATCHING_KEY']
  return async (token) => {
    try {
      const { payload } = await jwtVerify(token, keys, options)
      return { client_id: payload.client_id, scopes: payload.scope.split(' ') }
    } catch (error) {
      if (error instanceof errors.JOSEError && refusals.some((code) => error.code.startsWith(code))) return undefined
      throw error
    }
  }
}

const check = process.env.CHECK === 'jwks' ? verifyLocally() : introspect()

const server = http.createServer(async (request, response) => {
  const token = /^bearer (.+)$/i.exec(request.headers.authorization ?? '')?.[1]
  let caller
  try {
    caller = token && (await check(token))
  } catch {
    // Not 401: the caller would throw a good token away. Never 200.
    return response.writeHead(503).end('try again')
  }
  if (!caller) return response.writeHead(401, { 'www-authenticate': 'Bearer' }).end('no valid token')
  if (!caller.scopes.includes('orders:read')) return response.writeHead(403).end('orders:read is missing')
  response.end(`hello ${caller.client_id}`)
})
server.listen(process.env.PORT ?? 8000, '127.0.0.1', () => console.log(`serving on 127.0.0.1:${server.address().port}`))
