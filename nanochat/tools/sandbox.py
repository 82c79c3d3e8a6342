"""Runs Python programs that a model wrote: hostile code, confined by the kernel.

    with Sandbox() as sandbox:
        sandbox.run("assert 1 + 1 == 2").passed          # True

Promised in both tiers: a program has no network, not even loopback. It reads no file but Python's
and the system's libraries, no environment, no /proc. It writes only into a temporary folder of its
own, limited in size and gone afterwards. It is one process, which cannot start, exec, signal or
trace another, so its limits on CPU, wall time, memory, threads, open files and output are limits of
all of it, and nothing is left running. Nothing passes from one program to the next. It has no
capability, and cannot regain one.

Tiers, the first that works: *namespaces* (user, mount, pid, network, IPC and host name; then
Landlock where there is one, seccomp, rlimits) and *restricted* (Landlock, seccomp, rlimits) where
user namespaces are denied, as in many containers; see `RESTRICTED_LOSES`. Before either is used, a
program tries what is forbidden. With neither (macOS; Linux before 5.13), `Sandbox` raises, unless
told `unsafe`.

A result "passed" needs the end marker: a random nonce, which the program's process reads from a
pipe when the program has ended, and sends back. Not promised: that a program does not lie about
itself. It shares an interpreter with its tests, so it can replace what they call, or imitate the
end (read the nonce from descriptor 3 and write it to 4). It gains a wrong result about itself, and
nothing else.

Programs see the standard library only. Their hash seed is fixed, so that a set's order is not luck.
"""

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from nanochat.common import ConfigError, NanochatError, print0
from nanochat.inference.calculator import evaluate
from nanochat.tools.confined.program import EXITED, FAILED, MAX_ERROR, MEMORY, NONCE_BYTES, PASSED
from nanochat.tools.sandbox_host import ExecutionUnavailable, RawResult, Worker

TIERS = ("namespaces", "restricted")
RESTRICTED_LOSES = (
    "disk: exact for one file; the folder is measured every 20 ms, and files deleted while still "
    "open do not count (at most open_files times disk_bytes); no sub-folders, no chmod",
    "names: a program can ask whether a path exists, its size, owner and times, but not open it",
    "host name and process numbers of the machine are visible",
)
UNSAFE_LOSES = (
    "anything but limits on CPU, wall time, memory and output, as far as this system keeps them: a "
    "program has this user's files, network and processes",
)
MAX_TOOL_CHARS = 1000  # of a tool's answer
# Runs in every tier before it is trusted: each line must be refused, the last must work.
PROBE = """
import ctypes, os, socket, tempfile
for attempt in (lambda: open({secret!r}), lambda: os.listdir({folder!r}), os.fork,
                lambda: socket.socket(socket.AF_UNIX), lambda: socket.create_server(("", 0)),
                lambda: os.kill(os.getppid(), 0), lambda: open(os.__file__, "a"),
                lambda: os.execv("/bin/true", ["true"]), lambda: open("/proc/self/environ")):
    try:
        attempt()
    except OSError:
        continue
    raise SystemExit("not refused: line %d" % attempt.__code__.co_firstlineno)
tempfile.TemporaryFile().write(b"x")
"""


@dataclass(frozen=True)
class Limits:
    """What one program may use. CPU seconds are rounded up to whole ones; processes are threads,
    the first included, for a program is one process."""

    cpu_seconds: float = 5.0
    wall_seconds: float = 8.0
    memory_bytes: int = 512 << 20
    disk_bytes: int = 16 << 20
    processes: int = 16
    open_files: int = 64
    output_bytes: int = 64 << 10


@dataclass(frozen=True)
class ExecutionResult:
    """How a program ended.

    status: "passed" ran to its end; "failed" an exception, or text that does not compile; "exited"
    left early; "timeout" CPU or wall seconds; "memory" a MemoryError; "disk" its folder grew too
    large (namespaces: the write fails, so "failed"); "output" wrote too much; "killed" a signal,
    such as a crash; "tampered" something else than the end marker was sent in its place. output:
    stdout and stderr. error: why it did not pass, by the program itself where it "failed".
    """

    status: str
    output: str
    error: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.status == "passed"


class Sandbox:
    """Confined interpreters, each warm, kept for program after program. Threads may share it.

    ExecutionUnavailable if the system has none of the `tiers`; `unsafe` runs programs unconfined
    then.

    with Sandbox(Limits(cpu_seconds=2)) as sandbox: sandbox.run("while True: pass").status is
    "timeout".
    """

    def __init__(
        self, limits: Limits | None = None, unsafe: bool = False, tiers: Sequence[str] = TIERS
    ):
        self.limits = limits or Limits()
        self._lock, self._idle, self._closed = threading.Lock(), [], False
        reasons = []
        for tier in [*tiers, *["unsafe"] * unsafe]:
            self.tier = tier
            try:
                worker = Worker(self.tier, self.limits)
                self._idle.append(worker)
                if tier != "unsafe":
                    self._probe()
            except ExecutionUnavailable as error:
                reasons.append(f"{tier}: {error}")
                while self._idle:
                    self._idle.pop().close()
                continue
            loses = {"restricted": RESTRICTED_LOSES, "unsafe": UNSAFE_LOSES}.get(tier, ())
            self.loses = (*loses, *worker.lost)
            if self.loses:
                because = f" ({'; '.join(reasons)})" if reasons else ""
                print0(f"Sandbox tier: {tier}{because}. Not promised in it:")
                print0("\n".join(f"  - {line}" for line in self.loses))
            return
        raise ExecutionUnavailable(
            f"This system cannot confine untrusted programs ({'; '.join(reasons) or 'no tier'}). "
            f"Use Linux 5.13 or newer with user namespaces or Landlock, or chat_eval "
            f"--unsafe-execution, which gives them all of this user's rights."
        )

    def _probe(self) -> None:
        """Tries the forbidden; raises if anything of it works."""
        with tempfile.NamedTemporaryFile(prefix="nanochat-probe-") as secret:
            os.chmod(secret.name, 0o644)
            folder = os.path.expanduser("~")
            result = self.run(PROBE.format(secret=secret.name, folder=folder))
        if not result.passed:
            raise ExecutionUnavailable(f"its probe was {result.status}: {result.error}")

    def run(self, code: str) -> ExecutionResult:
        """Runs one program; raises only if the sandbox itself breaks."""
        with self._lock:
            if self._closed:
                raise NanochatError("this sandbox is closed; open another one to run programs")
            worker = self._idle.pop() if self._idle else None
        worker = worker or Worker(self.tier, self.limits)
        try:
            return classify(worker.run(code), self.limits)
        finally:
            with self._lock:
                keep = worker.alive and not self._closed
                self._idle += [worker] * keep
            if not keep:
                worker.close()

    def run_many(self, codes: Sequence[str], workers: int | None = None) -> list[ExecutionResult]:
        """One result a program, in their order; `workers` of them at a time (default: cores)."""
        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            return list(pool.map(self.run, codes))

    def close(self) -> None:
        """Ends the interpreters; a program that still runs ends with its own run()."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for worker in idle:
            worker.close()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def classify(raw: RawResult, limits: Limits) -> ExecutionResult:
    """The result of what came back. Raises ExecutionUnavailable if the tier failed."""
    output = raw.output[: limits.output_bytes].decode("utf-8", "replace")

    def result(status: str, error: str) -> ExecutionResult:
        return ExecutionResult(status, output, error, raw.seconds)

    if raw.ended is None:
        return result("killed", "the interpreter that ran it ended or hung; a new one follows")
    wait_status, cpu, too_large, problem = raw.ended
    if problem := problem.rstrip(b"\0").decode("utf-8", "replace"):
        raise ExecutionUnavailable(f"a program could not be confined, and was not run: {problem}")
    reasons = {
        "timeout": f"more than {limits.wall_seconds:g} s of wall time",
        "output": f"more than {limits.output_bytes:,} bytes of output",
        "tampered": "more on the end marker's descriptor than an end marker",
    }
    if raw.killed:
        return result(raw.killed, reasons[raw.killed])
    if too_large:
        return result("disk", f"more than {limits.disk_bytes:,} bytes, or too many files")
    code, marker = os.waitstatus_to_exitcode(wait_status), bytes(raw.marker)
    if marker == raw.nonce + PASSED and code == 0:
        return result("passed", "")
    kinds = {FAILED: "failed", EXITED: "exited", MEMORY: "memory"}
    kind, text = marker[NONCE_BYTES : NONCE_BYTES + 1], marker[NONCE_BYTES + 1 :][:MAX_ERROR]
    if marker.startswith(raw.nonce) and kind in kinds:
        return result(kinds[kind], text.decode("utf-8", "replace"))
    if marker:
        return result("tampered", "something else than the end marker came in its place")
    # subtle: the kernel limits CPU time by its ticks, and reports it by its clock: it may be less.
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu > limits.cpu_seconds / 2):
        return result("timeout", f"more than {limits.cpu_seconds:g} s of CPU time")
    if code < 0:
        return result("killed", f"signal {signal.Signals(-code).name}")
    return result("exited", f"it left with exit status {code} before its end")


# ---------------------------------------------------------------- as a chat tool


TOOL = """
import ast
def run(text):
    tree, place = ast.parse(text, "<program>"), {{"__name__": "__main__"}}
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<program>", "exec"), place)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "<program>", "eval"), place)
        if value is not None:
            print(value if isinstance(value, str) else repr(value))
run({code!r})
"""


def python_tool(sandbox: Sandbox) -> Callable[[str], str]:
    """A chat tool: text of a Python program -> what it printed and its last expression's value.

    Every call is a new program. tool = python_tool(sandbox); tool("x = 6\\nx * 7") is "42",
    tool("1/0") is "error: ZeroDivisionError: division by zero (line 1)".
    """

    def tool(code: str) -> str:
        result = sandbox.run(TOOL.format(code=code))
        text = result.output.strip()
        if not result.passed:
            reason = (result.error.strip() or result.status).splitlines()[0]
            text = f"error: {'' if result.status == 'failed' else result.status + ': '}{reason}"
        return text if len(text) <= MAX_TOOL_CHARS else text[: MAX_TOOL_CHARS - 3] + "..."

    return tool


@contextlib.contextmanager
def open_tool(name: str) -> Iterator[Callable[[str], str]]:
    """What tool calls are given to, until the end of `with`: "calculator", or "python", which runs
    in a sandbox.

    Example: with open_tool("calculator") as tool: tool("37*12") == "444"
    """
    if name == "calculator":
        yield evaluate
    elif name == "python":
        with Sandbox() as sandbox:
            yield python_tool(sandbox)
    else:
        raise ConfigError(f"tool {name!r} is unknown; choose calculator or python")
