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
from dataclasses import asdict
from pathlib import Path

from nanochat.tools.confined.program import NONCE_BYTES
from nanochat.tools.confined.worker import STATUS
from nanochat.tools.execution_result import (
    ExecutionResult,
    ExecutionUnavailable,
    Limits,
    RawResult,
    classify,
)

ROOT = Path(__file__).resolve().parents[2]
MARKER_BYTES = 1 << 16  # more than this on the marker's pipe is not a marker
GRACE = 10.0  # seconds in which a killed program must be gone
BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from nanochat.tools.confined import "
    "worker; sys.path.pop(0); import json; worker.main(*json.loads(sys.argv[2]))"
)


class Worker:
    """One confined warm interpreter, and what is said to it: three descriptors a program."""

    def __init__(self, tier: str, limits: Limits):
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
        self.alive = True
        self.lost = self._hear_ready()

    def _hear_ready(self) -> list[str]:
        """What this tier does not promise here; raises ExecutionUnavailable if it did not start."""
        self.control.settimeout(60)
        line = b""
        with contextlib.suppress(OSError):
            while not line.endswith(b"\n"):
                part = self.control.recv(4096)
                if not part:
                    break
                line += part
        self.control.settimeout(None)
        if line.endswith(b"\n"):
            ready = json.loads(line)
            if ready["error"] is None:
                return ready["lost"]
            reason = ready["error"]
        else:
            self.process.kill()
            message = self.process.stderr.read().decode(errors="replace").strip().splitlines()
            reason = f"the interpreter did not start: {message[-1] if message else 'no message'}"
        self.close()
        raise ExecutionUnavailable(reason)

    def run(self, code: str, limits: Limits) -> ExecutionResult:
        """One program; afterwards `alive` says whether another can follow."""
        start = time.monotonic()
        nonce = secrets.token_bytes(NONCE_BYTES)
        text = code.encode("utf-8", "surrogatepass")
        (source, to_source), (from_output, output), (from_marker, marker) = (
            os.pipe(), os.pipe(), os.pipe()
        )  # fmt: skip
        ours = [to_source, from_output, from_marker]
        try:
            with contextlib.suppress(OSError):  # then there will be no answer either
                socket.send_fds(self.control, [b"R"], [source, output, marker])
            for descriptor in (source, output, marker):
                os.close(descriptor)
            exchange = Exchange(self.control, *ours, len(text).to_bytes(8, "little") + text + nonce)
            raw = exchange.run(start + limits.wall_seconds, limits.output_bytes)
        finally:
            for descriptor in ours:
                os.close(descriptor)
        self.alive = raw.ended is not None
        raw.seconds = time.monotonic() - start
        return classify(raw, nonce, limits)

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


class Exchange:
    """The talk about one program: its text goes in; output, marker and its end come out."""

    def __init__(self, control, to_source: int, from_output: int, from_marker: int, text: bytes):
        self.control, self.to_source, self.text = control, to_source, memoryview(text)
        self.received = {from_output: bytearray(), from_marker: bytearray()}
        self.from_output, self.from_marker = from_output, from_marker
        self.raw = RawResult()

    def run(self, deadline: float, output_bytes: int) -> RawResult:
        """Talks until the program has ended, or is killed for a limit and has ended."""
        bounds = {self.from_output: ("output", output_bytes)}
        bounds[self.from_marker] = ("tampered", MARKER_BYTES)
        with selectors.DefaultSelector() as selector:
            os.set_blocking(self.to_source, False)
            selector.register(self.to_source, selectors.EVENT_WRITE)
            for descriptor in self.received:
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ)
            selector.register(self.control, selectors.EVENT_READ)
            alive = True
            while alive and self.raw.ended is None:
                for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                    if key.fileobj is self.control:
                        alive = self._hear_end()
                    elif not self._move(key.fd):
                        selector.unregister(key.fd)
                over = [why for d, (why, most) in bounds.items() if len(self.received[d]) > most]
                over += ["timeout"] * (time.monotonic() >= deadline)
                if over and self.raw.killed:
                    alive = time.monotonic() < deadline  # else the interpreter itself hangs
                elif over and self.raw.ended is None:
                    self._kill(over[0])
                    deadline = time.monotonic() + GRACE
        for descriptor, (_, most) in bounds.items():  # what it wrote just before its end
            while len(self.received[descriptor]) <= most and self._move(descriptor):
                pass
        self.raw.output = bytes(self.received[self.from_output])
        self.raw.marker = bytes(self.received[self.from_marker])
        return self.raw

    def _kill(self, reason: str) -> None:
        self.raw.killed = reason
        with contextlib.suppress(OSError):  # it went away: that is heard on the same socket
            self.control.sendall(b"K")

    def _hear_end(self) -> bool:
        """Takes the interpreter's word that the program has ended; False: it has itself ended."""
        message = b""
        while len(message) < STATUS.size:
            try:
                part = self.control.recv(STATUS.size - len(message))
            except OSError:
                return False
            if not part:
                return False
            message += part
        self.raw.ended = STATUS.unpack(message)
        return True

    def _move(self, descriptor: int) -> bool:
        """Moves what can be moved through one pipe; False when there is nothing more to come."""
        try:
            if descriptor == self.to_source:
                self.text = self.text[os.write(descriptor, self.text[: 1 << 16]) :]
                return bool(self.text)
            data = os.read(descriptor, 1 << 16)
        except (BrokenPipeError, BlockingIOError):
            return False
        if not self.raw.killed:
            self.received[descriptor] += data
        return bool(data)
