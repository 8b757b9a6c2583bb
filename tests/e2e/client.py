"""A client in another language, generated from `proto/` alone."""

import base64
import pathlib
import sys
import tempfile
import threading

import grpc
import grpc_tools
from grpc_tools import protoc

from server import PATIENCE, ROOT, WithServer


def generate():
    """Generates the client into a directory of its own, which is then importable."""
    out = tempfile.TemporaryDirectory(prefix="jeton-proto-")
    sources = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    well_known = str(pathlib.Path(grpc_tools.__file__).parent / "_proto")
    options = [f"-I{ROOT / 'proto'}", f"-I{well_known}", f"--python_out={out.name}", f"--grpc_python_out={out.name}"]
    if protoc.main(["protoc", *options, *sources]) != 0:
        raise RuntimeError("protoc refuses proto/")
    sys.path.insert(0, out.name)
    return out


GENERATED = generate()

from jeton.admin.v1 import client_service_pb2, client_service_pb2_grpc  # noqa: E402
from jeton.token.v1 import token_service_pb2 as token_pb2  # noqa: E402
from jeton.token.v1 import token_service_pb2_grpc as token_grpc  # noqa: E402

DETAILS = "grpc-status-details-bin"


def fields(data):
    """The length-delimited fields of a message whose generated class is not at hand, by number."""
    found, at = [], 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 2:
            length = varint()
            found.append((key >> 3, data[at : at + length]))
            at += length
        elif key & 7 == 0:
            varint()
        else:
            raise ValueError(f"wire type {key & 7}")
    return found


def error_info(error):
    """Reason and domain of the `google.rpc.ErrorInfo` in a status (its field 3 is a list of Any)."""
    details = next(value for name, value in error.trailing_metadata() if name == DETAILS)
    for packed in (value for number, value in fields(details) if number == 3):
        any_message = dict(fields(packed))
        if any_message[1] == b"type.googleapis.com/google.rpc.ErrorInfo":
            info = dict(fields(any_message[2]))
            return info[1].decode(), info[2].decode()
    raise AssertionError("no ErrorInfo")


class AnotherLanguage(WithServer):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.channel = grpc.insecure_channel(cls.server.address)
        cls.tokens = token_grpc.TokenServiceStub(cls.channel)
        first = {"client_id": cls.server.client_id, "client_secret": cls.server.client_secret}
        token = cls.tokens.Token(token_pb2.TokenRequest(scopes=["jeton:admin"], **first), timeout=PATIENCE).access_token
        cls.first = first
        grants = [client_service_pb2.GRANT_TYPE_CLIENT_CREDENTIALS, client_service_pb2.GRANT_TYPE_REFRESH_TOKEN]
        client = client_service_pb2.Client(client_id="python", scopes=["orders:read", "orders:write"], grant_types=grants)
        clients = client_service_pb2_grpc.ClientServiceStub(cls.channel)
        created = clients.CreateClient(
            client_service_pb2.CreateClientRequest(client=client), metadata=[("authorization", f"Bearer {token}")], timeout=PATIENCE
        )
        cls.me = {"client_id": "python", "client_secret": created.client_secret}

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        super().tearDownClass()

    def token(self, **more):
        return self.tokens.Token(token_pb2.TokenRequest(**self.me, **more), timeout=PATIENCE)

    def introspect(self, token, who=None):
        return self.tokens.Introspect(token_pb2.IntrospectRequest(token=token, **(who or self.first)), timeout=PATIENCE)

    def refused(self, code, reason, call, message, **more):
        with self.assertRaises(grpc.RpcError) as caught:
            call(message, timeout=PATIENCE, **more)
        self.assertEqual(caught.exception.code(), code)
        self.assertEqual(error_info(caught.exception), (reason, "jeton"))

    def test_a_token_from_its_issue_to_its_end(self):
        issued = self.token(scopes=["orders:read"])
        self.assertEqual((issued.token_type, issued.expires_in, list(issued.scopes)), ("Bearer", 900, ["orders:read"]))
        judged = self.introspect(issued.access_token)
        self.assertTrue(judged.active)
        # `iat` lies 10 s before the moment of issue.
        self.assertEqual((judged.client_id, judged.exp - judged.iat), ("python", 910))
        self.assertEqual(list(judged.aud), [self.server.issuer])
        self.tokens.Revoke(token_pb2.RevokeRequest(token=issued.access_token, **self.me), timeout=PATIENCE)
        judged = self.introspect(issued.access_token)
        # Present and false, and nothing besides.
        self.assertTrue(judged.HasField("active"))
        self.assertEqual(judged, token_pb2.IntrospectResponse(active=False))

    def test_refreshing_and_reusing(self):
        issued = self.token()
        request = token_pb2.RefreshRequest(refresh_token=issued.refresh_token, scopes=["orders:read"], **self.me)
        refreshed = self.tokens.Refresh(request, timeout=PATIENCE)
        self.assertEqual(list(refreshed.scopes), ["orders:read"])
        # The answer was lost: the same again.
        self.assertEqual(self.tokens.Refresh(request, timeout=PATIENCE).refresh_token, refreshed.refresh_token)
        following = token_pb2.RefreshRequest(refresh_token=refreshed.refresh_token, **self.me)
        newest = self.tokens.Refresh(following, timeout=PATIENCE)
        # Stolen and used after its successor was: the family ends.
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        self.refused(invalid, "INVALID_GRANT", self.tokens.Refresh, request)
        last = token_pb2.RefreshRequest(refresh_token=newest.refresh_token, **self.me)
        self.refused(invalid, "INVALID_GRANT", self.tokens.Refresh, last)
        self.assertFalse(self.introspect(newest.access_token).active)

    def test_many_at_once(self):
        good = self.token().access_token
        request = token_pb2.BatchIntrospectRequest(tokens=[good, "x"] * 500, **self.first)
        results = self.tokens.BatchIntrospect(request, timeout=PATIENCE).results
        self.assertEqual([result.active for result in results], [True, False] * 500)
        request.tokens.append("one too many")
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", self.tokens.BatchIntrospect, request)

    def test_error_details(self):
        wrong = token_pb2.TokenRequest(client_id="python", client_secret="jcs_wrong")
        self.refused(grpc.StatusCode.UNAUTHENTICATED, "INVALID_CLIENT", self.tokens.Token, wrong)
        scope = token_pb2.TokenRequest(scopes=["jeton:admin"], **self.me)
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SCOPE", self.tokens.Token, scope)
        nothing = token_pb2.RefreshRequest(refresh_token="jrt_nothing", **self.me)
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_GRANT", self.tokens.Refresh, nothing)

    def test_refusals_of_the_protocol_are_as_detailed(self):
        request = token_pb2.TokenRequest(**self.me)
        gzip = lambda *args, **more: self.tokens.Token(*args, compression=grpc.Compression.Gzip, **more)
        self.refused(grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED", gzip, request)
        unknown = self.channel.unary_unary("/jeton.token.v1.TokenService/Nothing", token_pb2.TokenRequest.SerializeToString)
        self.refused(grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED", unknown, request)

    def test_basic_credentials_in_the_metadata(self):
        pair = base64.b64encode(f"{self.first['client_id']}:{self.first['client_secret']}".encode()).decode()
        metadata = [("authorization", f"Basic {pair}")]
        scopes = token_pb2.TokenRequest(scopes=["jeton:admin"])
        issued = self.tokens.Token(scopes, metadata=metadata, timeout=PATIENCE)
        judged = self.tokens.Introspect(token_pb2.IntrospectRequest(token=issued.access_token), metadata=metadata, timeout=PATIENCE)
        self.assertIs(judged.active, True)
        # Twice is once too often.
        both = token_pb2.TokenRequest(**self.first)
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", self.tokens.Token, both, metadata=metadata)

    def test_a_request_id_comes_back(self):
        request = token_pb2.TokenRequest(**self.me)
        _, call = self.tokens.Token.with_call(request, metadata=[("x-request-id", "from-python-1")], timeout=PATIENCE)
        self.assertIn(("x-request-id", "from-python-1"), [tuple(pair) for pair in call.initial_metadata()])

    def test_many_threads_share_a_channel(self):
        tokens, failures = [], []

        def work():
            try:
                for _ in range(20):
                    tokens.append(self.token().access_token)
            except grpc.RpcError as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        self.assertEqual(len(set(tokens)), 160)
