"""The trusted side of the sandbox: starts a worker, hands it programs, reads what comes back."""

import contextlib
import json
import os
import secrets
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nanochat.common import NanochatError
from nanochat.tools.confined.program import NONCE_BYTES
from nanochat.tools.confined.worker import STATUS

ROOT = Path(__file__).resolve().parents[2]
MARKER_BYTES = 1 << 16  # more than this on the marker's pipe is not a marker
GRACE = 10.0  # seconds in which a killed program must be gone
BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from nanochat.tools.confined import "
    "worker; sys.path.pop(0); import json; worker.main(*json.loads(sys.argv[2]))"
)


class ExecutionUnavailable(NanochatError):
    """This system has no way to confine a program, and unconfined running was not asked for."""


@dataclass
class RawResult:
    """What was seen of a program's run from outside."""

    nonce: bytes
    output: bytearray = field(default_factory=bytearray)
    marker: bytearray = field(default_factory=bytearray)  # what came on the marker's descriptor
    ended: tuple | None = None  # the worker's STATUS fields; None if the interpreter went away
    killed: str = ""  # the status for which it was killed from outside
    seconds: float = 0.0


class Worker:
    """One confined warm interpreter, which runs one program after the other.

    ExecutionUnavailable if it does not start. limits: sandbox.Limits. lost: what the tier does not
    promise here. alive: whether another program can follow.
    """

    def __init__(self, tier: str, limits):
        self.limits = limits
        self.folder = os.path.realpath(tempfile.mkdtemp(prefix="nanochat-sandbox-"))
        self.control, theirs = socket.socketpair()
        # Nothing of our environment goes in but where libraries lie, which some Pythons need.
        names = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
        environment = {n: os.environ[n] for n in names if n in os.environ}
        environment |= {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
        boot = json.dumps([theirs.fileno(), tier, asdict(limits), self.folder])
        options = ["-s", "-S", "-P", "-B", "-W", "ignore", "-X", "utf8"]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, *options, "-c", BOOT, str(ROOT), boot],
                env=environment, cwd="/", pass_fds=[theirs.fileno()], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
        self.alive, line = True, b""
        self.control.settimeout(60)
        with contextlib.suppress(OSError), self.control.makefile("rb") as lines:
            line = lines.readline()
        self.control.settimeout(None)
        if line.endswith(b"\n"):
            reason, self.lost = json.loads(line)
        else:
            self.process.kill()
            message = self.process.stderr.read().decode(errors="replace").strip().splitlines()
            reason = f"the interpreter did not start: {message[-1] if message else 'no message'}"
        if reason is not None:
            self.close()
            raise ExecutionUnavailable(reason)

    def run(self, code: str) -> RawResult:
        """Runs one program."""
        start, nonce = time.monotonic(), secrets.token_bytes(NONCE_BYTES)
        self.alive = False  # unless it says below how the program ended
        text = code.encode("utf-8", "surrogatepass")
        (source, to_source), (from_output, output), (from_marker, marker) = (
            os.pipe() for _ in range(3)
        )
        raw = RawResult(nonce)
        received = {
            from_output: ("output", raw.output, self.limits.output_bytes),
            from_marker: ("tampered", raw.marker, MARKER_BYTES),
        }
        try:
            with contextlib.suppress(OSError):  # then there will be no answer either
                socket.send_fds(self.control, [b"R"], [source, output, marker])
            for descriptor in (source, output, marker):
                os.close(descriptor)
            text = memoryview(len(text).to_bytes(8, "little") + text + nonce)
            self._exchange(raw, to_source, text, received, start + self.limits.wall_seconds)
        finally:
            for descriptor in (to_source, from_output, from_marker):
                os.close(descriptor)
        self.alive = raw.ended is not None
        raw.seconds = time.monotonic() - start
        return raw

    def _exchange(
        self, raw: RawResult, to_source: int, text: memoryview, received: dict, deadline: float
    ) -> None:
        """Writes the text and reads what comes until the program has ended or is killed. received:
        descriptor -> (status above the bound, buffer, bound)."""

        def move(descriptor: int) -> bool:
            """Moves what one pipe takes or gives now; False when there is nothing more to come."""
            nonlocal text
            try:
                if descriptor == to_source:
                    text = text[os.write(descriptor, text[: 1 << 16]) :]
                    return bool(text)
                data = os.read(descriptor, 1 << 16)
            except (BrokenPipeError, BlockingIOError):
                return False
            if not raw.killed:
                received[descriptor][1].extend(data)
            return bool(data)

        with selectors.DefaultSelector() as selector:
            selector.register(to_source, selectors.EVENT_WRITE)
            for descriptor in received:
                selector.register(descriptor, selectors.EVENT_READ)
            selector.register(self.control, selectors.EVENT_READ)
            for descriptor in (to_source, *received):
                os.set_blocking(descriptor, False)
            alive = True
            while alive and raw.ended is None:
                for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                    if key.fileobj is self.control:
                        raw.ended = self._read_status()
                        alive = raw.ended is not None
                    elif not move(key.fd):
                        selector.unregister(key.fd)
                over = [status for status, got, most in received.values() if len(got) > most]
                over += ["timeout"] * (time.monotonic() >= deadline)
                if over and raw.killed:
                    alive = time.monotonic() < deadline  # else the interpreter itself hangs
                elif over and raw.ended is None:
                    raw.killed = over[0]
                    with contextlib.suppress(OSError):  # it went away: its socket says so too
                        self.control.sendall(b"K")
                    deadline = time.monotonic() + GRACE
        for descriptor, (_, got, most) in received.items():  # what it wrote just before its end
            while len(got) <= most and move(descriptor):
                pass

    def _read_status(self) -> tuple | None:
        """How the program ended, by the interpreter; None: that has ended itself."""
        with contextlib.suppress(OSError):
            message = self.control.recv(STATUS.size, socket.MSG_WAITALL)
            if len(message) == STATUS.size:
                return STATUS.unpack(message)
        return None

    def close(self) -> None:
        """Ends the interpreter: it leaves when its socket closes, and takes all with it."""
        self.alive = False
        self.control.close()
        try:
            self.process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stderr.close()
        shutil.rmtree(self.folder, ignore_errors=True)  # a program's folder went before its result
