"""A server of its own for each test class: the real binary in a temporary home."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Only a test that fails waits for so many seconds.
PATIENCE = 300


class Server:
    """`jeton serve --dev`, which ends with this object."""

    def __init__(self):
        self.home = tempfile.mkdtemp(prefix="jeton-e2e-")
        env = {"PATH": os.environ["PATH"], "HOME": self.home, "JETON_METRICS_LISTEN": "off"}
        # No test here is about real time: a busy machine is given all of it that can be configured.
        env |= {"JETON_LIMITS__DEADLINE_SECONDS": "300", "JETON_LIMITS__DRAIN_SECONDS": "60"}
        env |= {"JETON_TOKEN__REFRESH_GRACE_SECONDS": "60"}
        binary = os.environ.get("JETON", str(ROOT / "target/debug/jeton"))
        data = os.path.join(self.home, "data")
        command = [binary, "serve", "--dev", "--json", "--listen", "127.0.0.1:0", "--data-dir", data]
        self.log = open(os.path.join(self.home, "log"), "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            command, env=env, cwd=self.home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            raise RuntimeError(f"it did not start: {self.log.read()}")
        said = json.loads(line)
        self.address = said["address"]
        self.issuer = said["issuer"]
        self.client_id = said["client_id"]
        self.client_secret = said["client_secret"]

    def stop(self):
        """Ends it as an operator does; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process.stdout.close()
        self.log.close()
        shutil.rmtree(self.home)
        return code


class WithServer(unittest.TestCase):
    """Tests of one server; that it ends well belongs to them."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        # Also where the rest of the preparation fails.
        cls.addClassCleanup(cls.end)

    @classmethod
    def end(cls):
        code = cls.server.stop()
        if code != 0:
            raise AssertionError(f"the server ended with {code}")
