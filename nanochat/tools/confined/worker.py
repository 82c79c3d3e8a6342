"""What runs inside the sandbox: a warm interpreter that is forked once for every program.

It never sees a program's text or output, so nothing can leak from one to the next: the descriptors
that it is sent go to the forked child, and it only waits, kills and reports.
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

from nanochat.tools.confined import landlock, namespaces, seccomp, syscalls
from nanochat.tools.confined.program import run_program

# Imported before the first fork, because programs often want them.
WARM = """
abc argparse ast array asyncio base64 bisect builtins cmath collections collections.abc copy ctypes
dataclasses datetime decimal enum fractions functools hashlib heapq inspect io itertools json
linecache math numbers operator os pprint queue random re secrets socket statistics string struct
tempfile textwrap threading traceback typing unittest uuid
"""
LOOK_EVERY = 0.02  # seconds between two looks at a folder that nothing else limits
STATUS = struct.Struct("=id?200s")  # wait status, CPU s, folder too large, why not confined


def main(control_fd: int, tier: str, limits: dict, folder: str) -> None:
    """Prepares the tier; says on the control socket, as a line of JSON, why it could not, or None,
    and what the tier does not promise here; then serves until the socket closes."""
    with socket.socket(fileno=control_fd) as control:
        try:
            place = Place(tier, limits, folder)
        except OSError as error:
            control.sendall(json.dumps([str(error), []]).encode() + b"\n")
            return
        control.sendall(json.dumps([None, place.lost]).encode() + b"\n")
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
        # The kernel counts a user's processes, but not root's; exactly, if all are the sandbox's.
        counted = self.user is not None or (tier == "namespaces" and os.geteuid() != 0)
        self.threads = counted or tier == "unsafe"
        if not self.threads:
            self.lost.append("threads: refused, because the kernel cannot count this user's")
        if tier != "unsafe":
            self.architecture = syscalls.architecture()
            self.readable = [os.open(f, os.O_PATH | os.O_CLOEXEC) for f in files]
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
            folder = "/tmp"  # in namespaces, where a program's own process mounts one
            if self.tier != "namespaces":
                self.count += 1
                folder = os.path.join(self.folder, str(self.count))
                os.mkdir(folder, 0o700)
                if self.user is not None:
                    os.chown(folder, self.user, self.user)
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

    def wait_for(
        self, child: int, control: socket.socket, ended: int, folder: str
    ) -> tuple[int, float, bool]:
        """The child's wait status, CPU seconds and whether its folder grew too large, for which, or
        on order, it is killed."""
        too_large, watched = False, folder != "/tmp"
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
            if watched:
                sizes = []
                for entry in os.scandir(folder):
                    with contextlib.suppress(FileNotFoundError):
                        sizes.append(entry.stat(follow_symlinks=False).st_blocks * 512)
                if sum(sizes) > self.limits["disk_bytes"] or len(sizes) > namespaces.MAX_FILES:
                    too_large = True
                    os.kill(child, signal.SIGKILL)
        if self.tier == "unsafe":  # a confined program cannot have started processes
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
        return status, usage.ru_utime + usage.ru_stime, too_large

    # ------------------------------------------------------------ the program's side

    def confine(self, folder: str) -> None:
        """Takes from this process what a program must not have; OSError if any of it fails. In this
        order: mounting needs capabilities, and the filter forbids all the rest."""
        os.setsid()
        if self.tier == "namespaces":
            uid, gid = (self.user, self.user) if self.user else (os.geteuid(), os.getegid())
            namespaces.mount_own_folder(self.limits["disk_bytes"], uid, gid)
        os.chdir(folder)
        os.environ.update(HOME=folder, TMPDIR=folder)
        if self.user is not None:
            become(self.user)
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
        own_mounts = self.tier == "namespaces"
        seccomp.install(
            seccomp.build(os.getpid(), self.architecture, threads=self.threads, metadata=own_mounts)
        )

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


def readable_files() -> list[str]:
    """The allow-list: Python's library, folders of the shared libraries loaded here, the loader's
    cache, time zones, three devices."""
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


def become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def find_user(folder: str) -> int | None:
    """A user that nobody else is, and that can read Python's files and reach `folder`, tried in a
    child; None if there is none, for instance with Python in root's home."""
    os.chmod(folder, 0o711)
    for user in (1_000_000_000 + os.getpid(), 60_000 + os.getpid() % 5_000):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                become(user)
                os.chdir(folder)
                os.close(os.open(os.__file__, os.O_RDONLY))
                code = 0
            finally:
                os._exit(code)
        if os.waitpid(child, 0)[1] == 0:
            return user
    return None
