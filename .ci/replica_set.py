"""A replica set of three for as long as a command runs: see with-mongodb. Needs nothing but the standard library."""

import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

NAME = "jeton"
MEMBERS = int(os.environ.get("JETON_TEST_MEMBERS", "3"))
# From the start of the processes to a primary and its secondaries, and for an answer: a busy machine is given minutes.
PATIENCE_SECONDS = 300
# Room that the data may take, with the oplogs and journals of all members.
ROOM_BYTES = 6 << 30
HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def encode(value) -> tuple[int, bytes]:
    """The BSON type and bytes of what these commands are made of."""
    if isinstance(value, bool):
        return 0x08, bytes([value])
    if isinstance(value, int):
        return 0x10, struct.pack("<i", value)
    if isinstance(value, str):
        text = value.encode() + b"\0"
        return 0x02, struct.pack("<i", len(text)) + text
    pairs = value.items() if isinstance(value, dict) else ((str(at), item) for at, item in enumerate(value))
    body = b""
    for name, item in pairs:
        kind, data = encode(item)
        body += bytes([kind]) + name.encode() + b"\0" + data
    return 0x03 if isinstance(value, dict) else 0x04, struct.pack("<i", len(body) + 5) + body + b"\0"


def decode(body: bytes) -> dict:
    """The top level of a document: numbers, strings and truth; of the rest only that it is there."""
    sizes = {0x07: 12, 0x09: 8, 0x0A: 0, 0x11: 8, 0x13: 16}
    found, at = {}, 4
    while body[at]:
        kind = body[at]
        end = body.index(0, at)
        name, at = body[at + 1 : end].decode(), end + 1
        if kind == 0x01:
            found[name], size = struct.unpack_from("<d", body, at)[0], 8
        elif kind == 0x08:
            found[name], size = body[at] == 1, 1
        elif kind == 0x10:
            found[name], size = struct.unpack_from("<i", body, at)[0], 4
        elif kind == 0x12:
            found[name], size = struct.unpack_from("<q", body, at)[0], 8
        elif kind == 0x02:
            size = 4 + struct.unpack_from("<i", body, at)[0]
            found[name] = body[at + 4 : at + size - 1].decode()
        elif kind in (0x03, 0x04):
            found[name], size = None, struct.unpack_from("<i", body, at)[0]
        elif kind == 0x05:
            found[name], size = None, 5 + struct.unpack_from("<i", body, at)[0]
        else:
            found[name], size = None, sizes[kind]
        at += size
    return found


def command(port: int, document: dict) -> dict:
    """What a member answers, over a connection of its own (OP_MSG, one section)."""

    def read(size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = connection.recv(size - len(data))
            if not part:
                raise ConnectionError("closed")
            data += part
        return data

    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        body = struct.pack("<iB", 0, 0) + encode(document | {"$db": "admin"})[1]
        connection.sendall(struct.pack("<iiii", 16 + len(body), 1, 0, 2013) + body)
        return decode(read(struct.unpack("<iiii", read(16))[0] - 16)[5:])


def make_directory() -> pathlib.Path:
    """Makes the directory of the data: in memory where there is room, since every write is synced and no test needs
    the data to outlive the machine."""
    memory = pathlib.Path("/dev/shm")
    try:
        available = pathlib.Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
        room = min(shutil.disk_usage(memory).free, int(available) * 1024)
    except (OSError, IndexError, ValueError):
        room = 0
    parent = memory if room > ROOM_BYTES and os.access(memory, os.W_OK) else None
    return pathlib.Path(tempfile.mkdtemp(prefix="jeton-mongodb-", dir=parent))


def free_ports() -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(MEMBERS)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class ReplicaSet:
    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self.ports = free_ports()
        self.members: list[subprocess.Popen] = []

    def start(self):
        """Returns when there is a primary, and the others are its secondaries."""
        since = time.monotonic()
        for port in self.ports:
            data = self.directory / str(port)
            data.mkdir()
            arguments = f"--replSet {NAME} --bind_ip 127.0.0.1 --port {port} --dbpath {data} --nounixsocket --oplogSize 256"
            arguments += " --wiredTigerCacheSizeGB 0.25 --quiet"
            for parameter in ["enableTestCommands=1", "ttlMonitorEnabled=false", "diagnosticDataCollectionEnabled=false"]:
                arguments += f" --setParameter {parameter}"
            # A session of its own: Ctrl-C is for the command, which may want to tidy up.
            with open(self.directory / f"{port}.log", "wb") as log:
                member = subprocess.Popen(
                    [os.environ["MONGOD"], *arguments.split()],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            self.members.append(member)
        self.wait(since, lambda hellos: all(hellos))
        configuration = {
            "_id": NAME,
            "version": 1,
            "members": [{"_id": at, "host": f"127.0.0.1:{port}"} for at, port in enumerate(self.ports)],
            # No test on this set wants an election: a machine that stalls must not bring one about.
            "settings": {"electionTimeoutMillis": 60000, "heartbeatIntervalMillis": 500, "heartbeatTimeoutSecs": 60},
        }
        answer = command(self.ports[0], {"replSetInitiate": configuration})
        if answer["ok"] != 1:
            raise RuntimeError(f"replSetInitiate: {answer.get('errmsg')}")
        # Left alone, they wait for an election timeout. Refused until enough of them have the configuration.
        while command(self.ports[0], {"replSetStepUp": 1})["ok"] != 1 and time.monotonic() - since < PATIENCE_SECONDS:
            time.sleep(0.05)
        self.wait(since, self.settled)
        print(f"with-mongodb: a replica set of {MEMBERS} after {time.monotonic() - since:.1f} s", file=sys.stderr)

    def wait(self, since: float, ready):
        """Until this is so of what the members say of themselves; {} of one that is silent."""
        while True:
            hellos = []
            for port, member in zip(self.ports, self.members):
                if member.poll() is not None:
                    raise ChildProcessError(f"a mongod ended with {member.returncode}")
                try:
                    hellos.append(command(port, {"hello": 1}))
                except OSError:
                    hellos.append({})
            if ready(hellos):
                return
            if time.monotonic() - since > PATIENCE_SECONDS:
                raise TimeoutError(f"no replica set after {PATIENCE_SECONDS} s")
            time.sleep(0.05)

    @staticmethod
    def settled(hellos: list[dict]) -> bool:
        primaries = [hello for hello in hellos if hello.get("isWritablePrimary")]
        return len(primaries) == 1 and sum(bool(hello.get("secondary")) for hello in hellos) == MEMBERS - 1

    def uri(self) -> str:
        return f"mongodb://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/?replicaSet={NAME}"

    def end(self):
        # Nobody needs the data any more: no time for a clean end.
        for member in self.members:
            member.kill()
        for member in self.members:
            member.wait()

    def log(self) -> str:
        lines = []
        for path in self.directory.glob("*.log"):
            lines += path.read_text(errors="replace").splitlines()[-5:]
        return "\n".join(lines)


def main() -> int:
    directory = make_directory()
    replica_set, child = None, None

    def told(number, _frame):
        # The command ends, then we do; before there is one, we do at once.
        if child is None:
            sys.exit(128 + number)
        child.send_signal(number)

    for number in HEEDED:
        signal.signal(number, told)
    try:
        for last in (False, False, True):
            replica_set = ReplicaSet(directory)
            try:
                replica_set.start()
                break
            except ChildProcessError as error:
                # Somebody may have taken the port since it was free.
                replica_set.end()
                if last:
                    raise error
        environment = os.environ | {"JETON_TEST_MONGODB": replica_set.uri()}
        # For this script alone: jeton refuses settings that it does not know.
        environment.pop("JETON_TEST_MEMBERS", None)
        try:
            child = subprocess.Popen(sys.argv[1:], env=environment)
        except OSError as error:
            print(f"with-mongodb: {error}", file=sys.stderr)
            return 127
        code = child.wait()
        return code if code >= 0 else 128 - code
    except (OSError, RuntimeError) as error:
        print(f"with-mongodb: {error}\n{replica_set.log()}", file=sys.stderr)
        return 70
    finally:
        for number in HEEDED:
            signal.signal(number, signal.SIG_IGN)
        replica_set and replica_set.end()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
