"""The sandbox: what hostile programs try, as root and as an ordinary user, in every tier.

The attempts stand in sandbox_attempts.py. Each runs in every place that this machine can give.
"""

import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

import pytest
from sandbox_attempts import LIMITS, REFUSED, SLOW, VERDICTS, program, try_all

from nanochat.common import NanochatError
from nanochat.tools.sandbox import ExecutionUnavailable, Limits, Sandbox, python_tool

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
# As whom, and in which tier; "denied": the tier that is found where namespaces cannot be made.
PLACES = ["me-namespaces"]
PLACES += [
    pytest.param(place, marks=pytest.mark.slow)
    for place in ("me-restricted", "nobody-namespaces", "nobody-denied")
]


@functools.cache
def opened(tier: str) -> Sandbox | str:
    """The sandbox of this tier that all tests share, or why this machine has none."""
    os.environ["MY_SECRET_TOKEN"] = "hunter2"
    try:
        return Sandbox(LIMITS, tiers=[tier])
    except ExecutionUnavailable as error:
        return str(error)


def sandbox_or_skip(tier: str) -> Sandbox:
    if isinstance(opened(tier), str):
        pytest.skip(opened(tier))
    return opened(tier)


@pytest.fixture(scope="session", autouse=True)
def sandboxes():
    yield
    for tier in ("namespaces", "restricted"):
        if isinstance(opened(tier), Sandbox):
            opened(tier).close()


@pytest.fixture(scope="session")
def things():
    """What programs must not reach, all of it really there; each server says "secret"."""
    folder = tempfile.mkdtemp(prefix="nanochat-things-", dir="/tmp")
    os.chmod(folder, 0o777)  # open to everyone: only the sandbox is in the way
    secret = Path(folder, "secret")
    secret.write_text("secret")
    secret.chmod(0o666)
    abstract = f"\0nanochat-{os.getpid()}"
    servers = [socket.create_server(("127.0.0.1", 0))]
    for address in (abstract, folder + "/socket"):
        servers.append(socket.socket(socket.AF_UNIX))
        servers[-1].bind(address)
    os.chmod(folder + "/socket", 0o777)
    for server in servers:
        server.listen()
        threading.Thread(target=answer, args=(server,), daemon=True).start()
    victim = subprocess.Popen(["sleep", "infinity"])
    yield {
        "port": servers[0].getsockname()[1], "abstract": abstract, "unix": folder + "/socket",
        "secret": str(secret), "outside": folder, "home": "~root" if os.getuid() == 0 else "~",
        "project": str(ROOT / "README.md"), "victim": victim.pid,
    }  # fmt: skip
    assert victim.poll() is None  # nobody could end it
    assert secret.read_text() == "secret"
    assert sorted(os.listdir(folder)) == ["secret", "socket"]
    victim.kill()
    victim.wait()
    for server in servers:
        server.close()
    shutil.rmtree(folder)


def answer(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:  # closed at the end
            return
        with connection:
            connection.sendall(b"secret")


def python_of_nobody() -> str:
    """An interpreter with our packages that an ordinary user can start; for tests run by root."""
    paths = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        if os.path.exists(python) and shutil.which("setpriv"):
            command += ["env", f"PYTHONPATH={paths}", python, "-c", "import numpy"]
            if subprocess.run(command, capture_output=True, cwd="/").returncode == 0:
                return python
    pytest.skip(
        f"user {NOBODY} can start no Python with our packages (setpriv missing, or private)"
    )


@pytest.fixture(scope="session")
def results(things):
    """{place: (tier, what it loses, {attempt: [status, output, error]})}, filled when asked for."""
    found = {}

    def of(place: str):
        if place not in found:
            user, tier = place.split("-")
            if tier != "denied":
                sandbox_or_skip(tier)
            if user == "me":
                sandbox, skip = opened(tier), () if tier == "namespaces" else SLOW
                found[place] = (tier, sandbox.loses, try_all(sandbox, things, skip))
            else:
                found.update(as_nobody(things))
        if place not in found:
            pytest.skip(f"an ordinary user is refused {tier} here")
        return found[place]

    return of


def as_nobody(things) -> dict:
    """With namespaces, and what is found without, in a process of an ordinary user's."""
    user = NOBODY if os.geteuid() == 0 else None
    python = python_of_nobody() if user else sys.executable
    tiers = [*(["namespaces"] if ordinary_namespaces(user) else []), "denied"]
    spec = json.dumps({"user": user, "tiers": tiers, "things": things})
    paths = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, str(Path(__file__).with_name("sandbox_attempts.py")), spec]
    run = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    return {f"nobody-{tier}": tuple(value) for tier, value in found.items()}


def ordinary_namespaces(user: int | None) -> bool:
    command = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    if user:
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
    return subprocess.run(command, capture_output=True, cwd="/").returncode == 0


# ---------------------------------------------------------------- the attempts


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.slow
def test_is_refused(results, place, name):
    status, output, error = results(place)[2][name]
    lines = output.splitlines()
    assert status == "passed", (status, error, output)
    assert lines and all(line.startswith("refused ") for line in lines), output


@pytest.mark.parametrize("name", VERDICTS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.slow
def test_ends_as(results, place, name):
    attempts = results(place)[2]
    if place != "me-namespaces" and name in SLOW:
        pytest.skip("takes its whole time; tried in me-namespaces")
    status, output, error = attempts[name]
    _, expected, text = VERDICTS[name]
    if expected:
        assert status in expected.split("|"), (status, error, output)
    assert text in error, (status, error)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.slow
def test_which_tier_is_found(results, place):
    tier, loses, _ = results(place)
    assert tier == ("namespaces" if place.endswith("namespaces") else "restricted")
    assert bool(loses) == (tier == "restricted")


CAN_ESCAPE = {
    "connect to a server on loopback", "listen on loopback", "send a datagram",
    "connect to an abstract Unix socket", "connect to a Unix socket by path",
    "read a file of the user's", "list the home folder", "read passwd, hosts and the root folder",
    "read this project and its other packages",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CAN_ESCAPE))
def test_the_attempts_are_real(things, unsafe, name):
    """The same program, unconfined, does what the tests above see refused."""
    assert "ESCAPED" in unsafe.run(program(name, "unsafe", things)).output


@pytest.fixture(scope="module")
def unsafe():
    with Sandbox(LIMITS, unsafe=True, tiers=()) as sandbox:
        yield sandbox


@pytest.fixture(scope="module", params=["namespaces", "restricted"])
def sandbox(request):
    return sandbox_or_skip(request.param)


# ---------------------------------------------------------------- one program after another


def test_programs_share_nothing(sandbox):
    leave = "import os, builtins\nopen('left-behind', 'w').write('x')\nos.environ['A'] = 'x'\n"
    leave += "builtins.left = 1\nimport json; json.left = 1\nos.umask(0o777)\nos.chdir('/')"
    look = "import os, builtins, json\nassert not os.path.exists('left-behind')\n"
    look += "assert 'A' not in os.environ\nassert not hasattr(builtins, 'left')\n"
    look += (
        "assert not hasattr(json, 'left')\nassert os.umask(0) != 0o777\nassert os.listdir() == []"
    )
    interpreters = list(sandbox._idle)
    assert sandbox.run(leave).passed
    verdict = sandbox.run(look)
    assert verdict.passed, verdict
    assert sandbox._idle == interpreters  # both ran in forks of the same one


def test_text_of_a_program_is_not_in_the_next_ones_memory(sandbox):
    """The second one knows only the beginning of what it looks for, and a hash of the rest."""
    secret = secrets.token_hex(16)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    assert sandbox.run(f"x = 'BEGINNING{secret}'; print(x * 50)").passed
    assert sandbox.run(SCAN.format(digest=digest)).output == "0\n"
    # The search is real: it finds what its own program holds.
    own = SCAN.format(digest=digest) + f"\n# BEGINNING{secret}"
    assert int(sandbox.run(own).output) > 0


# Reads its own memory through a pipe, whose write fails instead of crashing at a hole.
SCAN = """
import ctypes, hashlib, os
r, w = os.pipe()
write, found = ctypes.CDLL(None).write, 0
write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
heap, objects = libc.sbrk(0) & ~4095, id(object()) & ~4095  # malloc's memory, and Python's
pages = [*range(heap - (16 << 20), heap, 4096)]
pages += range(objects - (16 << 20), objects + (16 << 20), 4096)
for page in pages:
    if write(w, page, 4096) == 4096:
        for part in os.read(r, 4096).split(b"BEGINNING")[1:]:
            found += hashlib.sha256(part[:32]).hexdigest() == "{digest}"
print(found)
"""


def test_environment_has_no_secret(sandbox):
    assert "MY_SECRET_TOKEN" in os.environ
    output = sandbox.run("import os; print(sorted(os.environ))").output
    expected = {"HOME", "LC_ALL", "PYTHONHASHSEED", "TMPDIR", "TZ", "LD_LIBRARY_PATH"}
    assert set(eval(output)) <= expected


def test_programs_of_root_are_nobodys(sandbox):
    if os.geteuid() != 0 or sandbox.tier != "namespaces":
        pytest.skip("in the restricted tier root may have to stay root, without capabilities")
    assert sandbox.run("import os; print(os.getresuid(), os.getgroups())").output == (
        f"({NOBODY}, {NOBODY}, {NOBODY}) []\n"
    )


def test_capabilities_are_dropped():
    if os.geteuid() != 0:
        pytest.skip("only root has capabilities to drop")
    program = "from nanochat.tools.confined import syscalls; syscalls.drop_capabilities(); "
    program += "print(open('/proc/self/status').read())"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    found = dict(re.findall(r"^(Cap\w+|NoNewPrivs):\s*(\w+)$", run.stdout, re.MULTILINE))
    assert {found[n] for n in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert found["NoNewPrivs"] == "1"


def test_a_dead_interpreter_is_replaced_and_nothing_is_left_running_or_lying(sandbox):
    with Sandbox(LIMITS, tiers=[sandbox.tier]) as new:
        new._idle[0].process.kill()
        new._idle[0].process.wait()
        first, second = new.run("print(1)"), new.run("print(2)")
        assert first.status == "killed" and "interpreter" in first.error
        assert second.passed
        worker = new._idle[0]
        pid, folder = worker.process.pid, worker.folder
        new.run("open('x', 'w').write('x' * 1000)")
        left = [p for p in Path(folder).rglob("*") if p.is_file()]
        assert not left
    assert not os.path.exists(folder)
    assert not os.path.exists(f"/proc/{pid}")
    assert not children_of_session(pid)


def children_of_session(pid: int) -> list[int]:
    """Processes of the session that the worker began; programs' own sessions are its children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has just ended
            continue
        if pid in (int(fields[1]), int(fields[3])) and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
def test_the_sandboxes_end_with_their_owner():
    """The owner is killed in the middle of programs; all that it started and made goes too."""
    tiers = [t for t in ("namespaces", "restricted") if isinstance(opened(t), Sandbox)]
    if not tiers:
        pytest.skip(opened("restricted"))
    owner = (
        "import threading\nfrom nanochat.tools.sandbox import *\n"
        f"for tier in {tiers}:\n"
        "  s = Sandbox(Limits(wall_seconds=60), tiers=[tier]); w = s._idle[0]\n"
        "  print('worker', w.process.pid, w.folder, flush=True)\n"
        "  threading.Thread(target=s.run, args=('import time; time.sleep(60)',)).start()\n"
    )
    command = [sys.executable, "-c", owner]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    lines = []
    while len(lines) < len(tiers):
        line = process.stdout.readline()
        assert line, "the owner ended"
        if line.startswith("worker "):
            lines.append(line.split())
    workers = [(int(pid), folder) for _, pid, folder in lines]
    time.sleep(0.3)
    assert all(children_of_session(pid) and os.path.exists(folder) for pid, folder in workers)
    process.kill()
    process.wait()
    process.stdout.close()

    def left() -> list[str]:
        return [f for pid, f in workers if children_of_session(pid) or os.path.exists(f)]

    deadline = time.monotonic() + 10
    while left() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left()


def test_many_programs_at_once_keep_their_order(sandbox):
    programs = [f"print({i})" if i % 3 else f"assert 0, {i}" for i in range(20)]
    verdicts = sandbox.run_many(programs, workers=3)
    for i, verdict in enumerate(verdicts):
        if i % 3:
            assert (verdict.status, verdict.output) == ("passed", f"{i}\n")
        else:
            assert (verdict.status, verdict.error) == ("failed", f"AssertionError: {i} (line 1)")


def test_long_programs_and_outputs_pass_through(sandbox):
    text = "x = '" + "a" * 500_000 + "'\nassert len(x) == 500_000\nprint('é' * 2000)"
    verdict = sandbox.run(text)
    assert verdict.passed and verdict.output == "é" * 2000 + "\n"


def test_what_programs_may_do(sandbox):
    """The limits leave room for ordinary programs, down to lazily loaded extension modules."""
    ordinary = """
import asyncio, decimal, json, lzma, random, re, sqlite3, statistics, tempfile, zoneinfo
from dataclasses import dataclass
@dataclass
class Point:
    x: int
assert Point(1) == Point(1) and random.random() != random.random()
async def double(x):
    await asyncio.sleep(0.001)
    return 2 * x
assert asyncio.run(double(4)) == 8
with tempfile.NamedTemporaryFile("w+") as file:
    file.write("x"); file.seek(0); assert file.read() == "x"
assert sqlite3.connect(":memory:").execute("select 1 + 1").fetchone() == (2,)
assert lzma.decompress(lzma.compress(b"x")) == b"x"
if __name__ == "__main__":
    print("main")
"""
    verdict = sandbox.run(ordinary)
    assert (verdict.status, verdict.output) == ("passed", "main\n"), verdict
    if sandbox.tier == "namespaces":
        more = "import os, shutil, time\nos.makedirs('a/b'); os.chmod('a', 0o700)\n"
        more += "os.symlink('a', 'l')"
        more += "\nopen('a/x', 'w').write('x'); shutil.copytree('a', 'c'); shutil.rmtree('a')"
        more += (
            "\nimport threading; t = threading.Thread(target=time.sleep, args=(.01,)); t.start()"
        )
        verdict = sandbox.run(more + "; t.join()")
        assert verdict.passed, verdict


def test_the_folder_as_a_whole_is_limited(sandbox):
    fill = "import time\nfor i in range(40):\n  open(str(i), 'wb').write(b'x' * 100_000)\n"
    verdict = sandbox.run(fill + "time.sleep(1)")
    expected = {
        "namespaces": ("failed", "No space left"),
        "restricted": ("disk", "1,048,576 bytes"),
    }
    status, text = expected[sandbox.tier]
    assert verdict.status == status and text in verdict.error, verdict


def test_a_program_can_forge_only_its_own_verdict(sandbox):
    """Documented, not promised otherwise: it imitates the end. The next program is untouched."""
    forge = "import os; os.write(4, os.read(3, 16) + b'P'); os._exit(0)"
    assert sandbox.run(forge).passed
    assert sandbox.run("assert False").status == "failed"


# ---------------------------------------------------------------- the sandbox itself


def test_a_program_that_cannot_be_confined_is_not_run(sandbox):
    """The kernel refuses a limit of this size; that is an error of the tier, never a verdict."""
    with pytest.raises(ExecutionUnavailable, match="could not be confined, and was not run"):
        Sandbox(Limits(disk_bytes=1 << 70), tiers=[sandbox.tier])


def test_refused_where_there_is_no_tier():
    with pytest.raises(ExecutionUnavailable, match="--unsafe-execution"):
        Sandbox(tiers=())
    assert issubclass(ExecutionUnavailable, NanochatError)


def test_unsafe_is_used_only_without_a_tier_and_says_so(capsys, unsafe):
    assert unsafe.tier == "unsafe" and unsafe.run("assert 1 + 1 == 2").passed
    with Sandbox(LIMITS, unsafe=True, tiers=()) as sandbox:
        assert "Sandbox tier: unsafe. Not promised in it:" in capsys.readouterr().out
    with pytest.raises(NanochatError, match="closed"):
        sandbox.run("1")
    if isinstance(opened("namespaces"), Sandbox):
        with Sandbox(LIMITS, unsafe=True) as sandbox:
            assert sandbox.tier == "namespaces"
        assert capsys.readouterr().out == ""


def test_losses_are_printed(capsys):
    sandbox_or_skip("restricted")
    with Sandbox(LIMITS, tiers=["restricted"]) as sandbox:
        printed = capsys.readouterr().out
    assert all(line in printed for line in sandbox.loses)


# ---------------------------------------------------------------- the chat tool


@pytest.mark.parametrize(
    "code, expected",
    [("1 + 1", "2"), ("x = 6\nx * 7", "42"), ("print('a')", "a"), ("'b' * 3", "bbb"),
     ("print('a')\n[1, 'b']", "a\n[1, 'b']"), ("x = 1", ""), ("None", ""), ("", ""),
     ("1 / 0", "error: ZeroDivisionError: division by zero (line 1)"),
     ("x =", "error: SyntaxError: invalid syntax (<program>, line 1)"),
     ("import os; os._exit(3)", "error: exited: it left with exit status 3 before its end"),
     ("'''{x}' \"\"\"'''", "{x}' \"\"\""), ("raise ValueError('a\\nb')", "error: ValueError: a"),
     ("def f(n):\n    return 1 if n < 2 else n * f(n - 1)\nf(5)", "120")],
)  # fmt: skip
def test_python_tool(sandbox, code, expected):
    assert python_tool(sandbox)(code) == expected


def test_python_tool_bounds_its_answer(sandbox):
    assert python_tool(sandbox)("'x' * 2000") == "x" * 997 + "..."
