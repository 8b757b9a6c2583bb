"""The examples as users run them: callers of an API, and APIs that check tokens in both ways."""

import http.client
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest

import grpc

import client
from server import PATIENCE, ROOT, WithServer

sys.path.insert(0, str(ROOT / "examples/python"))

import caller  # noqa: E402

AUDIENCE = "https://orders.example"
CACHE = pathlib.Path(os.environ.get("JETON_CI_CACHE", ROOT / ".ci/cache"))


MODULES = CACHE / "node/node_modules"


class Examples(WithServer):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        channel = grpc.insecure_channel(cls.server.address)
        cls.addClassCleanup(channel.close)
        cls.tokens = client.token_grpc.TokenServiceStub(channel)
        clients = client.client_service_pb2_grpc.ClientServiceStub(channel)
        me = {"client_id": cls.server.client_id, "client_secret": cls.server.client_secret}
        admin = cls.tokens.Token(client.token_pb2.TokenRequest(**me, scopes=["jeton:admin"])).access_token
        bearer = [("authorization", f"Bearer {admin}")]
        admin_pb2 = client.client_service_pb2
        cls.secrets = {}
        for registered in (
            admin_pb2.Client(client_id="orders", scopes=["jeton:introspect"], serves=[AUDIENCE]),
            admin_pb2.Client(client_id="billing", scopes=["orders:read"], audiences=[AUDIENCE]),
            admin_pb2.Client(client_id="stock", scopes=["stock:read"], audiences=[AUDIENCE]),
        ):
            registered.grant_types.append(admin_pb2.GRANT_TYPE_CLIENT_CREDENTIALS)
            request = admin_pb2.CreateClientRequest(client=registered)
            created = clients.CreateClient(request, metadata=bearer, timeout=PATIENCE)
            cls.secrets[registered.client_id] = created.client_secret

    def environment(self, client_id, **more):
        credentials = {"CLIENT_ID": client_id, "CLIENT_SECRET": self.secrets[client_id]}
        place = {"JETON_ADDRESS": self.server.address, "PORT": "0"}
        paths = os.pathsep.join([client.GENERATED.name, os.environ.get("PYTHONPATH", "")])
        return {"PATH": os.environ["PATH"], "PYTHONPATH": paths} | credentials | place | more

    def serve(self, command, check):
        """Starts an API; its address."""
        env = self.environment("orders", CHECK=check)
        process = subprocess.Popen([*command, AUDIENCE], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        said = process.stdout.readline()
        self.assertTrue(said.startswith("serving on "), said)
        return said.removeprefix("serving on ").strip()

    def call(self, command, client_id, address):
        """Output of a caller."""
        command = [*command, f"http://{address}/orders"]
        run = subprocess.run(
            command, env=self.environment(client_id), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
        )
        return run.stdout + run.stderr

    def status(self, address, token):
        """Status of the API for a token."""
        connection = http.client.HTTPConnection(address, timeout=PATIENCE)
        connection.request("GET", "/orders", headers={"authorization": f"Bearer {token}"})
        status = connection.getresponse().status
        connection.close()
        return status

    def walk(self, caller_command, server_command):
        for check in ("introspect", "jwks"):
            with self.subTest(check=check):
                address = self.serve(server_command, check)
                self.assertIn("200 hello billing", self.call(caller_command, "billing", address))
                self.assertIn("403", self.call(caller_command, "stock", address))
                mine = {"client_id": "billing", "client_secret": self.secrets["billing"]}
                token = self.tokens.Token(client.token_pb2.TokenRequest(**mine)).access_token
                altered = token[:-10] + ("A" if token[-10] != "A" else "B") + token[-9:]
                self.assertEqual((self.status(address, token), self.status(address, altered)), (200, 401))
                self.assertEqual(self.status(address, "no token"), 401)
                self.tokens.Revoke(client.token_pb2.RevokeRequest(**mine, token=token))
                # An API that verifies locally accepts a revoked token until it expires.
                self.assertEqual(self.status(address, token), 401 if check == "introspect" else 200)

    def test_python(self):
        python = [sys.executable]
        self.walk([*python, "examples/python/caller.py"], [*python, "examples/python/server.py"])

    def test_node(self):
        # Node looks for packages beside its program.
        with tempfile.TemporaryDirectory(prefix="jeton-node-") as place:
            root = pathlib.Path(place)
            shutil.copytree(ROOT / "examples/node", root / "examples/node")
            (root / "proto").symlink_to(ROOT / "proto")
            (root / "node_modules").symlink_to(MODULES)
            self.walk(*(["node", root / "examples/node" / name] for name in ("caller.mjs", "server.mjs")))

    def test_rust(self):
        programs = pathlib.Path(os.environ.get("JETON", ROOT / "target/debug/jeton")).parent / "examples"
        self.walk([programs / "caller"], [programs / "server"])

    def test_threads_share_one_request_and_renew_it(self):
        channel = grpc.insecure_channel(self.server.address, options=[("grpc.service_config", caller.SERVICE_CONFIG)])
        self.addCleanup(channel.close)
        tokens = caller.Tokens(channel, "billing", self.secrets["billing"])
        seen = set()
        threads = [threading.Thread(target=lambda: seen.add(tokens.get())) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(seen), 1)
        tokens.renew_at = 0
        self.assertNotIn(tokens.get(), seen)
        # While the token is valid, a failure to renew it has no effect.
        tokens.renew_at, valid = 0, tokens.token
        channel.close()
        tokens.token_service = Away()
        self.assertEqual(tokens.get(), valid)
        tokens.expires_at = 0
        with self.assertRaises(grpc.RpcError):
            tokens.get()


class Away:
    """A service that cannot be reached."""

    def Token(self, _request):
        raise grpc.RpcError("away")


if __name__ == "__main__":
    unittest.main()
