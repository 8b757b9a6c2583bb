"""Every RPC by grpcurl and reflection alone: no generated code, nothing known but an address and a first secret."""

import base64
import json
import os
import subprocess

from server import PATIENCE, WithServer

TOKEN = "jeton.token.v1.TokenService"
CLIENTS = "jeton.admin.v1.ClientService"
AUDIENCES = "jeton.admin.v1.AudienceService"
KEYS = "jeton.admin.v1.KeyService"
REVOCATIONS = "jeton.admin.v1.RevocationService"
AUDIT = "jeton.admin.v1.AuditService"
HEALTH = "grpc.health.v1.Health"


class Failed(Exception):
    """A call that was refused, with everything that grpcurl printed of it."""

    def __init__(self, text):
        super().__init__(text)
        self.text = text


class EveryRpc(WithServer):
    called = set()

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        token = cls.call(TOKEN, "Token", cls.mine(scopes=["jeton:admin"]))["accessToken"]
        cls.bearer = ("authorization", f"Bearer {token}")

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        missed = cls.offered - cls.called
        if missed:
            raise AssertionError(f"RPCs that no test called: {sorted(missed)}")

    @classmethod
    def grpcurl(cls, *arguments, headers=(), stdin=None, timeout=PATIENCE):
        words = [os.environ.get("GRPCURL", "grpcurl"), "-plaintext", "-max-time", str(timeout)]
        for name, value in headers:
            words += ["-H", f"{name}: {value}"]
        ran = subprocess.run([*words, *arguments], input=stdin, capture_output=True, text=True, timeout=timeout + PATIENCE, check=False)
        if ran.returncode != 0:
            raise Failed(f"{ran.returncode}\n{ran.stdout}\n{ran.stderr}")
        return ran.stdout

    @classmethod
    def call(cls, service, method, message=None, headers=()):
        cls.called.add(f"{service}/{method}")
        text = json.dumps(message or {})
        out = cls.grpcurl("-d", "@", cls.server.address, f"{service}/{method}", headers=headers, stdin=text)
        return json.loads(out)

    def admin(self, service, method, message=None):
        return self.call(service, method, message, [self.bearer])

    def refused(self, code, service, method, message=None, headers=()):
        with self.assertRaises(Failed) as caught:
            self.call(service, method, message, headers)
        self.assertIn(f"Code: {code}", caught.exception.text)
        return caught.exception.text

    @classmethod
    def mine(cls, **fields):
        return {"clientId": cls.server.client_id, "clientSecret": cls.server.client_secret, **fields}

    def registered(self, **fields):
        client = {"scopes": ["orders:read"], "grantTypes": ["GRANT_TYPE_CLIENT_CREDENTIALS", "GRANT_TYPE_REFRESH_TOKEN"]}
        created = self.admin(CLIENTS, "CreateClient", {"client": {**client, **fields}})
        return {"clientId": created["client"]["clientId"], "clientSecret": created["clientSecret"]}

    def active(self, token, **fields):
        return self.call(TOKEN, "Introspect", self.mine(token=token, **fields))["active"]

    def test_reflection_lists_and_describes_everything(self):
        services = set(self.grpcurl(self.server.address, "list").split())
        ours = {TOKEN, CLIENTS, AUDIENCES, KEYS, REVOCATIONS, AUDIT, HEALTH}
        self.assertLessEqual(ours, services)
        for service in ours:
            methods = self.grpcurl(self.server.address, "list", service).split()
            type(self).offered = getattr(type(self), "offered", set()) | {"/".join(name.rsplit(".", 1)) for name in methods}
        self.assertEqual(len(self.offered), 5 + 9 + 3 + 3 + 1 + 4 + 2)
        text = self.grpcurl(self.server.address, "describe", "jeton.token.v1.TokenRequest")
        self.assertIn("RFC 8707", text, "descriptors carry their comments")

    def test_token_refresh_introspect_revoke(self):
        who = self.registered(clientId="till-7", tenant="shop", scopes=["orders:read", "jeton:introspect"])
        issued = self.call(TOKEN, "Token", {**who, "scopes": ["orders:read"]})
        self.assertEqual((issued["tokenType"], issued["expiresIn"], issued["scopes"]), ("Bearer", "900", ["orders:read"]))
        header = json.loads(base64.urlsafe_b64decode(issued["accessToken"].split(".")[0] + "=="))
        self.assertEqual((header["typ"], header["alg"]), ("at+jwt", "EdDSA"))
        judged = self.call(TOKEN, "Introspect", self.mine(token=issued["accessToken"]))
        self.assertIs(judged["active"], True)
        self.assertEqual((judged["clientId"], judged["tenant"], judged["sub"]), ("till-7", "shop", "client:till-7"))
        self.assertEqual(judged["iss"], self.server.issuer)

        refreshed = self.call(TOKEN, "Refresh", {**who, "refreshToken": issued["refreshToken"]})
        self.assertNotEqual(refreshed["refreshToken"], issued["refreshToken"])
        self.assertIs(self.active(refreshed["accessToken"]), True)
        hinted = {"token": refreshed["refreshToken"], "tokenTypeHint": "refresh_token"}
        self.assertIs(self.call(TOKEN, "Introspect", self.mine(**hinted))["active"], True)
        # Its own client is not told whether it is spent.
        self.assertEqual(self.call(TOKEN, "Introspect", {**who, **hinted}), {"active": False})

        self.assertEqual(self.call(TOKEN, "Revoke", {**who, "token": refreshed["refreshToken"]}), {})
        # `active: false` is printed, and nothing else.
        for token in [issued["accessToken"], refreshed["accessToken"], "no token at all"]:
            self.assertEqual(self.call(TOKEN, "Introspect", self.mine(token=token)), {"active": False})

    def test_many_tokens_are_judged_in_their_order(self):
        who = self.registered()
        good = self.call(TOKEN, "Token", who)["accessToken"]
        judged = self.call(TOKEN, "BatchIntrospect", self.mine(tokens=[good, "bad", good]))["results"]
        self.assertEqual([result["active"] for result in judged], [True, False, True])
        self.assertEqual(judged[1], {"active": False})

    def test_credentials_in_the_metadata(self):
        who = self.registered()
        pair = base64.b64encode(f"{who['clientId']}:{who['clientSecret']}".encode()).decode()
        issued = self.call(TOKEN, "Token", {}, [("authorization", f"Basic {pair}")])
        self.assertIs(self.active(issued["accessToken"]), True)

    def test_errors_say_what_is_wrong(self):
        text = self.refused("Unauthenticated", TOKEN, "Token", {**self.mine(), "clientSecret": "jcs_wrong"})
        self.assertIn('"reason":"INVALID_CLIENT"', text.replace(" ", ""))
        self.assertIn('"domain":"jeton"', text.replace(" ", ""))
        text = self.refused("InvalidArgument", TOKEN, "Token", self.mine(grantType="password"))
        self.assertIn("UNSUPPORTED_GRANT_TYPE", text)
        text = self.refused("InvalidArgument", TOKEN, "Token", self.mine(scopes=["not:mine"]))
        self.assertIn("INVALID_SCOPE", text)
        text = self.refused("InvalidArgument", TOKEN, "Introspect", self.mine())
        self.assertIn("google.rpc.BadRequest", text)
        self.refused("Unauthenticated", CLIENTS, "ListClients", {})
        self.refused("NotFound", CLIENTS, "GetClient", {"clientId": "nobody"}, [self.bearer])
        token = self.call(TOKEN, "Token", self.registered())["accessToken"]
        text = self.refused("PermissionDenied", KEYS, "ListKeys", {}, [("authorization", f"Bearer {token}")])
        self.assertIn("INSUFFICIENT_SCOPE", text)

    def test_a_client_from_registration_to_its_end(self):
        who = self.registered(clientId="robot", displayName="Robot")
        client = self.admin(CLIENTS, "GetClient", {"clientId": "robot"})["client"]
        self.assertEqual(client["displayName"], "Robot")
        self.assertNotIn(who["clientSecret"], json.dumps(client))
        listed = self.admin(CLIENTS, "ListClients", {"pageSize": 1000})["clients"]
        self.assertIn("robot", [client["clientId"] for client in listed])

        # This grpcurl writes a mask as the message that it is; newer ones as "displayName".
        mask = {"paths": ["display_name"]}
        update = {"client": {"clientId": "robot", "displayName": "R2", "etag": client["etag"]}, "updateMask": mask}
        changed = self.admin(CLIENTS, "UpdateClient", update)["client"]
        self.assertEqual(changed["displayName"], "R2")
        self.refused("Aborted", CLIENTS, "UpdateClient", update, [self.bearer])

        second = self.admin(CLIENTS, "AddSecret", {"clientId": "robot"})
        fresh = {"clientId": "robot", "clientSecret": second["clientSecret"]}
        self.call(TOKEN, "Token", fresh)
        first = next(secret["secretId"] for secret in second["client"]["secrets"] if secret["secretId"] != second["secretId"])
        self.admin(CLIENTS, "RetireSecret", {"clientId": "robot", "secretId": first})
        self.refused("Unauthenticated", TOKEN, "Token", who)

        token = self.call(TOKEN, "Token", fresh)["accessToken"]
        self.assertIs(self.admin(CLIENTS, "DisableClient", {"clientId": "robot"})["client"]["disabled"], True)
        self.assertIs(self.active(token), False)
        self.refused("Unauthenticated", TOKEN, "Token", fresh)
        self.admin(CLIENTS, "EnableClient", {"clientId": "robot"})
        self.assertIs(self.active(token), False)
        self.call(TOKEN, "Token", fresh)
        self.assertEqual(self.admin(CLIENTS, "DeleteClient", {"clientId": "robot"}), {})
        self.refused("Unauthenticated", TOKEN, "Token", fresh)
        self.refused("NotFound", CLIENTS, "GetClient", {"clientId": "robot"}, [self.bearer])

    def test_everything_of_a_client_ends_at_once(self):
        who = self.registered()
        tokens = [self.call(TOKEN, "Token", who)["accessToken"] for _ in range(3)]
        message = {"clientId": who["clientId"], "reason": "its laptop was stolen"}
        reached = {"clients": "1", "clientId": who["clientId"]}
        self.assertEqual(self.admin(REVOCATIONS, "RevokeAll", message), reached)
        judged = self.call(TOKEN, "BatchIntrospect", self.mine(tokens=tokens))["results"]
        self.assertEqual(judged, [{"active": False}] * 3)
        self.assertIs(self.active(self.call(TOKEN, "Token", who)["accessToken"]), True)

    def test_audiences_are_assigned_listed_and_released(self):
        pay = "https://pay.example"
        assigned = self.admin(AUDIENCES, "AssignAudience", {"audience": pay, "tenant": "shop"})["audience"]
        self.assertEqual((assigned["audience"], assigned["tenant"]), (pay, "shop"))
        listed = self.admin(AUDIENCES, "ListAudiences", {"tenant": "shop"})["audiences"]
        self.assertEqual([audience["audience"] for audience in listed], [pay])
        moved = self.admin(AUDIENCES, "AssignAudience", {"audience": pay, "tenant": "other"})["audience"]
        self.assertEqual(moved["tenant"], "other")
        spelled = {"audience": "https://Pay.example", "tenant": "other"}
        self.refused("InvalidArgument", AUDIENCES, "AssignAudience", spelled, [self.bearer])
        self.assertEqual(self.admin(AUDIENCES, "ReleaseAudience", {"audience": pay}), {})
        self.refused("NotFound", AUDIENCES, "ReleaseAudience", {"audience": pay}, [self.bearer])

    def test_keys_are_listed_rotated_and_revoked(self):
        who = self.registered()
        keys = self.admin(KEYS, "ListKeys")["keys"]
        self.assertEqual(sorted(key["state"] for key in keys), ["KEY_STATE_ACTIVE", "KEY_STATE_PREPARED"])
        token = self.call(TOKEN, "Token", who)["accessToken"]
        rotated = self.admin(KEYS, "RotateKeys")["keys"]
        self.assertIs(self.active(token), True)
        prepared = next(key for key in rotated if key["state"] == "KEY_STATE_PREPARED")
        after = self.admin(KEYS, "RevokeKey", {"kid": prepared["kid"]})["keys"]
        self.assertEqual([key["state"] for key in after].count("KEY_STATE_ACTIVE"), 1)
        self.assertIs(self.active(token), True)

    def test_the_trail_is_listed_verified_and_followed(self):
        self.called.add(f"{AUDIT}/TailEvents")
        words = [os.environ.get("GRPCURL", "grpcurl"), "-plaintext", "-max-time", str(PATIENCE), "-H", ": ".join(self.bearer)]
        words += ["-d", '{"filter":{"action":"client."}}', self.server.address, f"{AUDIT}/TailEvents"]
        tail = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            # The tail begins when the call is there, which nothing says: until an event comes, more are made.
            os.set_blocking(tail.stdout.fileno(), False)
            text, made = "", []
            while "client.created" not in text:
                self.assertLess(len(made), 100, text)
                made.append(self.registered()["clientId"])
                text += (tail.stdout.read() or b"").decode()
        finally:
            tail.kill()
            tail.wait()
            tail.stdout.close()
        self.assertTrue(any(client in text for client in made))

        listed = self.admin(AUDIT, "ListEvents", {"filter": {"action": "client.created"}, "pageSize": 1000})["events"]
        self.assertLessEqual(set(made), {event["target"] for event in listed})
        self.assertNotIn(self.server.client_secret, json.dumps(listed))
        verdict = self.admin(AUDIT, "VerifyChain")
        self.assertIs(verdict["intact"], True)
        (chain,) = verdict["chains"]
        self.assertEqual({event["chain"] for event in listed}, {chain["chain"]})
        known = {"chain": chain["chain"], "sequence": chain["headSequence"], "hash": chain["headHash"]}
        again = self.admin(AUDIT, "VerifyChain", {"chain": chain["chain"], "known": [known]})
        self.assertIs(again["intact"], True)
        forged = self.admin(AUDIT, "VerifyChain", {"known": [known | {"hash": "00" * 32}]})
        self.assertIs(forged["intact"], False)
        missing = self.admin(AUDIT, "VerifyChain", {"known": [known | {"chain": "another"}]})
        self.assertEqual([judged["intact"] for judged in missing["chains"]], [False, True])
        # Reports of progress, and the result in the last one.
        self.called.add(f"{AUDIT}/VerifyTrail")
        target = [self.server.address, f"{AUDIT}/VerifyTrail"]
        reports = self.grpcurl("-d", json.dumps({"startAfter": [known]}), *target, headers=[self.bearer])
        self.assertEqual(reports.count('"CHAIN_STATE_INTACT"'), 2, reports)

    def test_health(self):
        self.assertEqual(self.call(HEALTH, "Check"), {"status": "SERVING"})
        self.called.add(f"{HEALTH}/Watch")
        # The stream goes on until its time is up, of which the call itself leaves more or less.
        for timeout in (2, 10, PATIENCE):
            with self.assertRaises(Failed) as caught:
                self.grpcurl("-d", "{}", self.server.address, f"{HEALTH}/Watch", timeout=timeout)
            if '"status": "SERVING"' in caught.exception.text:
                break
        self.assertIn('"status": "SERVING"', caught.exception.text)
        self.assertIn("Code: DeadlineExceeded", caught.exception.text)
