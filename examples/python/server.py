"""An API that checks access tokens: by Introspect, or with CHECK=jwks by itself.

    $ pip install grpcio grpcio-tools 'PyJWT[crypto]'          # generated code: see caller.py
    $ CLIENT_ID=orders CLIENT_SECRET=jcs_... PYTHONPATH=gen python examples/python/server.py https://orders.example
    serving on 127.0.0.1:8000
"""

import http.server
import os
import sys

import grpc
import jwt
from jeton.token.v1 import token_service_pb2 as pb
from jeton.token.v1 import token_service_pb2_grpc as rpc

ADDRESS = os.environ.get("JETON_ADDRESS", "127.0.0.1:50051")
ISSUER = os.environ.get("JETON_ISSUER", f"http://{ADDRESS}")
# The algorithm of the service (keys.algorithm): never taken from the token.
ALGORITHM = os.environ.get("ALGORITHM", "EdDSA")
AUDIENCE = sys.argv[1]


class Unknown(Exception):
    """The token could be neither accepted nor refused."""


def introspect():
    """A check that sees every revocation. The service returns only active tokens for this API."""
    service = rpc.TokenServiceStub(grpc.insecure_channel(ADDRESS))
    me = {"client_id": os.environ["CLIENT_ID"], "client_secret": os.environ["CLIENT_SECRET"]}

    def check(token):
        try:
            answer = service.Introspect(pb.IntrospectRequest(token=token, **me), timeout=2, wait_for_ready=True)
        except grpc.RpcError as error:
            raise Unknown(error.code()) from error
        return {"client_id": answer.client_id, "scopes": answer.scopes} if answer.active else None

    return check


def verify_locally():
    """A check without a call. It does not see revocations: a token is accepted until it expires."""
    keys = jwt.PyJWKClient(f"{ISSUER}/.well-known/jwks.json", lifespan=600, timeout=2)
    options = {"require": ["iss", "aud", "exp", "nbf", "client_id"]}

    def check(token):
        try:
            key = keys.get_signing_key_from_jwt(token)
            checked = jwt.decode_complete(
                token, key.key, [ALGORITHM], options, audience=AUDIENCE, issuer=ISSUER, leeway=5
            )
        except jwt.PyJWKClientConnectionError as error:
            raise Unknown(error) from error
        except jwt.PyJWTError:
            return None
        claims = checked["payload"]
        if checked["header"].get("typ") != "at+jwt":
            return None
        return {"client_id": claims["client_id"], "scopes": claims["scope"].split()}

    return check


CHECK = verify_locally() if os.environ.get("CHECK") == "jwks" else introspect()


class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        try:
            caller = CHECK(token) if scheme.lower() == "bearer" else None
        except Unknown:
            # Not 401: the caller would throw a good token away. Never 200.
            return self.answer(503, "try again")
        if caller is None:
            return self.answer(401, "no valid token")
        if "orders:read" not in caller["scopes"]:
            return self.answer(403, "orders:read is missing")
        return self.answer(200, f"hello {caller['client_id']}")

    def answer(self, status, text):
        self.send_response(status)
        if status == 401:
            self.send_header("www-authenticate", "Bearer")
        self.end_headers()
        self.wfile.write(text.encode())


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), Api)
print(f"serving on 127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
