// A caller with a cached token: one request for all calls, renewed before it expires, with retries.
//
//     $ npm install @grpc/grpc-js @grpc/proto-loader
//     $ CLIENT_ID=billing CLIENT_SECRET=jcs_... node examples/node/caller.mjs http://127.0.0.1:8000/orders
//     200 hello billing

import grpc from '@grpc/grpc-js'
import { connect } from './jeton.mjs'

export class Tokens {
  #renewAt = 0
  #expiresAt = 0
  #renewing

  constructor(service, request) {
    this.service = service
    this.request = request
  }

  async get() {
    if (performance.now() < this.#renewAt) return this.token
    this.#renewing ??= this.#renew().finally(() => (this.#renewing = undefined))
    // While the old token is valid it is used, and a failure to renew it has no effect.
    if (performance.now() < this.#expiresAt) this.#renewing.catch(() => {})
    else await this.#renewing
    return this.token
  }

  async #renew() {
    const askedAt = performance.now()
    const answer = await this.service.call('Token', this.request)
    const lifetime = Number(answer.expires_in) * 1000
    this.token = answer.access_token
    // With jitter, so that processes that started together do not renew together.
    this.#renewAt = askedAt + lifetime * (0.7 + 0.1 * Math.random())
    this.#expiresAt = askedAt + lifetime * 0.95
  }
}

if (process.argv[2]) {
  const service = connect(process.env.JETON_ADDRESS ?? '127.0.0.1:50051', grpc.credentials.createInsecure())
  const { CLIENT_ID: client_id, CLIENT_SECRET: client_secret } = process.env
  const tokens = new Tokens(service, { client_id, client_secret })
  const [token] = await Promise.all([tokens.get(), tokens.get()])
  const answer = await fetch(process.argv[2], { headers: { authorization: `Bearer ${token}` } })
  console.log(answer.status, await answer.text())
}
