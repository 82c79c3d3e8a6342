"""What runs inside the sandbox: a warm interpreter that is forked once for every program.

Started by tools/sandbox_host.py as a process of its own, with an empty environment. It never sees a
program's text or output, so nothing can leak from one to the next: the descriptors that it is sent
go to the forked child, and it only waits, kills and reports. Imports nothing but the standard
library.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import pwd
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import time

from nanochat.tools.confined import landlock, namespaces, seccomp, syscalls
from nanochat.tools.confined.program import run_program

# Imported before the first fork, because programs often want them.
WARM = (
    "abc argparse ast array asyncio base64 bisect builtins cmath collections collections.abc copy"
)
WARM += " ctypes dataclasses datetime decimal enum fractions functools hashlib heapq inspect io"
WARM += " itertools json linecache math numbers operator os pprint queue random re secrets socket"
WARM += " statistics string struct tempfile textwrap threading traceback typing unittest uuid"

LOOK_EVERY = 0.02  # seconds between two looks at a folder that nothing else limits
# Wait status, CPU seconds, wall seconds, folder too large, why it could not be confined.
STATUS = struct.Struct("=idd?200s")


def main(control_fd: int, tier: str, limits: dict, folder: str) -> None:
    """Prepares the tier and says so on the control socket, as JSON; then serves until it closes."""
    with socket.socket(fileno=control_fd) as control:
        try:
            place = Place(tier, limits, folder)
        except OSError as error:
            control.sendall(json.dumps({"error": str(error)}).encode() + b"\n")
            return
        control.sendall(json.dumps({"error": None, "lost": place.lost}).encode() + b"\n")
        try:
            with contextlib.suppress(BrokenPipeError):  # the owner went away during a program
                place.serve(control)
        finally:
            if tier != "namespaces":  # there it lies outside, and who waits there removes it
                shutil.rmtree(folder, ignore_errors=True)


class Place:
    """The prepared tier: what every program's process is confined with."""

    def __init__(self, tier: str, limits: dict, folder: str):
        self.tier, self.limits, self.folder, self.count = tier, limits, folder, 0
        self.lost: list[str] = []
        self.user: int | None = None  # a user of their own for the programs; None: the caller's
        for name in WARM.split():
            importlib.import_module(name)
        files = readable_files()
        self.abi = 0 if tier == "unsafe" else landlock.version()
        if tier == "namespaces":
            self.user = namespaces.NOBODY if namespaces.enter(files, folder) else None
        elif tier == "restricted":
            if not self.abi:
                raise OSError("the kernel offers no Landlock")
            self.user = find_user(folder) if os.geteuid() == 0 else None
        # The kernel counts a user's processes: exactly, if all of them are the sandbox's. It does
        # not count those of root.
        counted = self.user is not None or (tier == "namespaces" and os.geteuid() != 0)
        self.threads = counted or tier == "unsafe"
        if not self.threads:
            self.lost.append("threads: refused, because the kernel cannot count this user's")
        if tier != "unsafe":
            self.architecture = syscalls.architecture()
            path = getattr(os, "O_PATH", 0) | os.O_CLOEXEC
            self.readable = [os.open(f, path) for f in files]
        gc.collect()
        gc.freeze()  # the forks then share these objects' memory

    # ------------------------------------------------------------ the warm interpreter's side

    def serve(self, control: socket.socket) -> None:
        """One program after the other, each a forked child, until the other side is closed."""
        ended, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(ended, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake)
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, 1, 3)
            if not message:
                return
            if message != b"R":  # an order to kill that came after the end
                continue
            folder = self.new_folder()
            problem, report = os.pipe()
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                run_program(functools.partial(self.confine, folder), *descriptors, report)
            for descriptor in (*descriptors, report):
                os.close(descriptor)
            status = self.wait_for(child, control, ended, folder)
            if folder != "/tmp":
                shutil.rmtree(folder)
            control.sendall(STATUS.pack(*status, os.read(problem, 200)))
            os.close(problem)

    def wait_for(self, child: int, control: socket.socket, ended: int, folder: str) -> tuple:
        """The child's end, as STATUS's first fields; kills it on order, or for a large folder."""
        start, too_large = time.monotonic(), False
        watched = folder != "/tmp"
        while True:
            ready, _, _ = select.select([control, ended], [], [], LOOK_EVERY if watched else None)
            if control in ready:
                control.recv(1)  # any word, or none, means: enough
                os.kill(child, signal.SIGKILL)
            if ended in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(ended, 4096)
            pid, status, usage = os.wait4(child, os.WNOHANG)
            if pid:
                break
            if watched and self.is_too_large(folder):
                too_large = True
                os.kill(child, signal.SIGKILL)
        if self.tier == "unsafe":  # a confined program cannot have started processes
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
        seconds = usage.ru_utime + usage.ru_stime
        return status, seconds, time.monotonic() - start, too_large

    def new_folder(self) -> str:
        """Where the next program may write; in namespaces its own process mounts one."""
        if self.tier == "namespaces":
            return "/tmp"
        self.count += 1
        folder = os.path.join(self.folder, str(self.count))
        os.mkdir(folder, 0o700)
        if self.user is not None:
            os.chown(folder, self.user, self.user)
        return folder

    def is_too_large(self, folder: str) -> bool:
        size = number = 0
        with os.scandir(folder) as entries:
            for entry in entries:
                number += 1
                with contextlib.suppress(FileNotFoundError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
        return size > self.limits["disk_bytes"] or number > namespaces.MAX_FILES

    # ------------------------------------------------------------ the program's side

    def confine(self, folder: str) -> None:
        """Takes from this process all that a program shall not have. OSError if any of it fails.

        The order matters: mounting needs capabilities, the filter forbids everything else here.
        """
        os.setsid()
        if self.tier == "namespaces":
            uid, gid = (self.user, self.user) if self.user else (os.geteuid(), os.getegid())
            namespaces.mount_own_folder(self.limits["disk_bytes"], uid, gid)
        os.chdir(folder)
        os.environ.update(HOME=folder, TMPDIR=folder)
        if self.user is not None:
            os.setgroups([])
            os.setresgid(self.user, self.user, self.user)
            os.setresuid(self.user, self.user, self.user)
        if self.tier == "unsafe":
            self.set_limits()
            return
        syscalls.drop_capabilities()
        if self.abi:
            reading = landlock.READ_FILE | landlock.READ_DIR
            writing = landlock.FILES | (landlock.FOLDERS if self.tier == "namespaces" else 0)
            rules = [(descriptor, reading) for descriptor in self.readable]
            rules.append((os.open(folder, os.O_PATH), writing))
            null = os.open(os.devnull, os.O_PATH)
            rules.append((null, landlock.READ_FILE | landlock.WRITE_FILE))
            landlock.restrict(self.abi, rules)
        self.set_limits()
        only_own_mounts = self.tier == "namespaces"
        filter_ = seccomp.build(
            os.getpid(), self.architecture, threads=self.threads, metadata=only_own_mounts
        )
        seccomp.install(filter_)

    def set_limits(self) -> None:
        limits = self.limits
        wanted = {
            "CPU": -int(-limits["cpu_seconds"] // 1),  # whole seconds, rounded up
            "AS": limits["memory_bytes"],
            "FSIZE": limits["disk_bytes"],
            "NOFILE": limits["open_files"],
            "CORE": 0,
        }
        if self.tier != "unsafe":
            # The waiting process and the warm interpreter are the same user's, unless root runs us.
            others = 2 if self.user is None and self.tier == "namespaces" else 0
            wanted |= {"NPROC": limits["processes"] + others, "MEMLOCK": 0, "MSGQUEUE": 0}
        for name, value in wanted.items():
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            # SIGXCPU says why it ends; who survives that has a second until SIGKILL.
            bounds = (value, value + 1) if name == "CPU" and value != hard else (value, value)
            try:
                resource.setrlimit(kind, bounds)
            except (ValueError, OSError):
                if self.tier != "unsafe":  # macOS refuses some; its printed line says so
                    raise


# ---------------------------------------------------------------- what Python needs


def readable_files() -> list[str]:
    """The allow-list: Python's library, the folders of the shared libraries that this process has
    loaded, the loader's cache, time zones, three devices."""
    found = {p for p in sys.path if os.path.exists(p)}
    found |= {"/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/null", "/dev/zero", "/dev/urandom"}
    if os.path.exists("/proc/self/maps"):
        with open("/proc/self/maps") as maps:
            files = [line.split(maxsplit=5)[-1].strip() for line in maps]
        libraries = [f for f in files if f.startswith("/") and ".so" in os.path.basename(f)]
        found |= {os.path.dirname(f) for f in libraries}
    try:
        home = os.path.realpath(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:  # a container's user may have no entry, and then no home
        home = "/"
    for path in found:
        if (home + "/").startswith(os.path.realpath(path).rstrip("/") + "/"):
            raise OSError(f"Python needs to read {path}, which holds the home folder {home}")
    return sorted(p for p in found if os.path.exists(p))


def find_user(folder: str) -> int | None:
    """A user that nobody else is, and that can read Python's files and reach `folder`; found by
    becoming it in a child. None if there is none, for instance with Python in root's home."""
    os.chmod(folder, 0o711)
    for user in (1_000_000_000 + os.getpid(), 60_000 + os.getpid() % 5_000):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
                os.chdir(folder)
                os.close(os.open(os.__file__, os.O_RDONLY))
                code = 0
            finally:
                os._exit(code)
        if os.waitpid(child, 0)[1] == 0:
            return user
    return None
