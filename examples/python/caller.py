"""A caller with a cached token: one request for all threads, renewed before it expires, with retries.

    $ pip install grpcio grpcio-tools && mkdir gen
    $ python -m grpc_tools.protoc -I proto --python_out gen --grpc_python_out gen proto/jeton/token/v1/token_service.proto
    $ CLIENT_ID=billing CLIENT_SECRET=jcs_... PYTHONPATH=gen python examples/python/caller.py http://127.0.0.1:8000/orders
    200 hello billing
"""

import json
import os
import random
import sys
import threading
import time
import urllib.request

import grpc
from jeton.token.v1 import token_service_pb2 as pb
from jeton.token.v1 import token_service_pb2_grpc as rpc

# Every call of the service may be repeated: a lost reply does no harm.
RETRY = {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2}
RETRY |= {"retryableStatusCodes": ["UNAVAILABLE"]}
METHODS = {"name": [{"service": "jeton.token.v1.TokenService"}], "waitForReady": True, "timeout": "10s"}
SERVICE_CONFIG = json.dumps({"methodConfig": [METHODS | {"retryPolicy": RETRY}]})


class Tokens:
    """The access token of a client, for any number of threads."""

    def __init__(self, channel, client_id, client_secret, scopes=()):
        self.token_service = rpc.TokenServiceStub(channel)
        self.request = pb.TokenRequest(client_id=client_id, client_secret=client_secret, scopes=scopes)
        self.lock = threading.Lock()
        self.token, self.renew_at, self.expires_at = "", 0.0, 0.0

    def get(self):
        if time.monotonic() < self.renew_at:
            return self.token
        # While the old token is valid, one thread renews it and the others use it.
        if not self.lock.acquire(blocking=time.monotonic() >= self.expires_at):
            return self.token
        try:
            if time.monotonic() >= self.renew_at:
                self.renew()
        except grpc.RpcError:
            if time.monotonic() >= self.expires_at:
                raise
        finally:
            self.lock.release()
        return self.token

    def renew(self):
        asked_at = time.monotonic()
        answer = self.token_service.Token(self.request)
        self.token = answer.access_token
        # With jitter, so that processes that started together do not renew together.
        self.renew_at = asked_at + answer.expires_in * random.uniform(0.7, 0.8)
        self.expires_at = asked_at + answer.expires_in * 0.95


def main():
    # Beyond this machine: grpc.secure_channel(address, grpc.ssl_channel_credentials(), ...)
    channel = grpc.insecure_channel(
        os.environ.get("JETON_ADDRESS", "127.0.0.1:50051"), options=[("grpc.service_config", SERVICE_CONFIG)]
    )
    tokens = Tokens(channel, os.environ["CLIENT_ID"], os.environ["CLIENT_SECRET"])
    request = urllib.request.Request(sys.argv[1], headers={"authorization": f"Bearer {tokens.get()}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        print(answer.status, answer.read().decode())


if __name__ == "__main__":
    main()
