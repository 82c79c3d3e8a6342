"""How a program's run is limited, and how it ended."""

import os
import signal
from dataclasses import asdict, dataclass

from nanochat.common import ConfigError, NanochatError
from nanochat.tools.confined.program import EXITED, FAILED, MAX_ERROR, MEMORY, NONCE_BYTES, PASSED


class ExecutionUnavailable(NanochatError):
    """This system has no way to confine a program, and unconfined running was not asked for."""


@dataclass(frozen=True)
class Limits:
    """What one program may use. CPU seconds are rounded up to whole ones."""

    cpu_seconds: float = 5.0
    wall_seconds: float = 8.0
    memory_bytes: int = 512 << 20
    disk_bytes: int = 16 << 20
    processes: int = 16
    """Threads, the first included: a program is one process."""
    open_files: int = 64
    output_bytes: int = 64 << 10

    def __post_init__(self):
        least = {"memory_bytes": 64 << 20, "disk_bytes": 4096, "open_files": 16}
        for name, value in asdict(self).items():
            smallest = least.get(name, 0 if name == "output_bytes" else 1e-3)
            if not value >= smallest:
                raise ConfigError(f"{name} is {value}; a program needs at least {smallest}")


@dataclass(frozen=True)
class ExecutionResult:
    """How a program ended.

    status: "passed" ran to its end without an exception; "failed" an exception, or text that does
    not compile; "exited" it left early (sys.exit, os._exit, descriptors closed), whatever its exit
    status; "timeout" CPU or wall seconds; "memory" a MemoryError; "disk" its folder grew too large
    (namespaces: the write fails, so "failed"); "output" it wrote too much; "killed" a signal ended
    it, such as a crash; "tampered" something else than the end marker was sent in its place.
    output: what it printed, stdout and stderr, at most output_bytes. error: why it did not pass, ""
    if it did; written by the program itself where it "failed". seconds: wall time.
    """

    status: str
    output: str
    error: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@dataclass
class RawResult:
    """What was seen of a program's run from outside."""

    output: bytes = b""
    marker: bytes = b""
    """What came on the end marker's descriptor."""
    ended: tuple | None = None
    """The worker's STATUS fields; None if the interpreter went away."""
    killed: str = ""
    """The status for which it was killed from outside."""
    seconds: float = 0.0


def classify(raw: RawResult, nonce: bytes, limits: Limits) -> ExecutionResult:
    """The result of what came back. Raises ExecutionUnavailable if the tier failed."""
    output = raw.output[: limits.output_bytes].decode("utf-8", "replace")

    def result(status: str, error: str) -> ExecutionResult:
        return ExecutionResult(status, output, error, raw.seconds)

    if raw.ended is None:
        return result("killed", "the interpreter that ran it ended or hung; a new one follows")
    wait_status, cpu, _, too_large, problem = raw.ended
    if problem := problem.rstrip(b"\0").decode("utf-8", "replace"):
        raise ExecutionUnavailable(f"a program could not be confined, and was not run: {problem}")
    code, marker = os.waitstatus_to_exitcode(wait_status), raw.marker
    reasons = {
        "timeout": f"more than {limits.wall_seconds:g} s of wall time",
        "output": f"more than {limits.output_bytes:,} bytes of output",
        "tampered": "more on the end marker's descriptor than an end marker",
    }
    if raw.killed:
        return result(raw.killed, reasons[raw.killed])
    if too_large:
        return result("disk", f"more than {limits.disk_bytes:,} bytes, or too many files")
    if marker == nonce + PASSED and code == 0:
        return result("passed", "")
    kinds = {FAILED: "failed", EXITED: "exited", MEMORY: "memory"}
    if marker.startswith(nonce) and marker[NONCE_BYTES : NONCE_BYTES + 1] in kinds:
        kind, text = marker[NONCE_BYTES : NONCE_BYTES + 1], marker[NONCE_BYTES + 1 :]
        return result(kinds[kind], text[:MAX_ERROR].decode("utf-8", "replace"))
    if marker:
        return result("tampered", "something else than the end marker came in its place")
    # subtle: the kernel limits CPU time by its ticks, and reports it by its clock: it may be less.
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu > limits.cpu_seconds / 2):
        return result("timeout", f"more than {limits.cpu_seconds:g} s of CPU time")
    if code < 0:
        return result("killed", f"signal {signal.Signals(-code).name}")
    return result("exited", f"it left with exit status {code} before its end")
