"""Namespaces of the sandbox's own: user, mount, pid, network, IPC and host name.

In them there are the files that Python needs, read-only, and nothing else: no /proc, no home, no
network device, no other process. The calls are bubblewrap's, made here because the warm interpreter
lives on inside and mounts a fresh folder for every program. Linux 5.12 or newer.
"""

import contextlib
import os
import signal
import socket
import struct

from nanochat.tools.confined import syscalls

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
OTHER_NAMESPACES = 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000  # UTS, IPC, PID, NET
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE, MNT_DETACH = -100, 0x8000, 2
NOBODY = 65534
MAX_FILES = 1024  # that a program's folder may hold
LINKS = ("/lib", "/lib64", "/usr/lib64")  # on most systems: links that the loader's cache names


def enter(readable: list[str], stage: str) -> bool:
    """Returns in the first process of new namespaces, where only `readable` is left of the files;
    True if programs can be given a user of their own there (the caller was root).

    The calling process stays behind, waits for it and never returns; OSError there if any of it is
    denied. stage: an empty folder to build on.
    """
    outside = os.open(os.path.dirname(stage), os.O_RDONLY)
    own_user = _unshare()
    first = os.fork()
    if first:
        os.dup2(outside, 3)
        os.closerange(4, 256)  # the control socket is the other one's
        _, status = os.waitpid(first, 0)
        with contextlib.suppress(OSError):  # its owner does it too, if it is still there
            os.rmdir(os.path.basename(stage), dir_fd=3)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    os.close(outside)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    socket.sethostname("sandbox")
    _mount_root(readable, stage)
    return own_user


def _unshare() -> bool:
    """New namespaces for this process and, of processes, for those that it starts; see `enter`.

    Root gets two users in it, 0 to build it and NOBODY for the programs, for the kernel does not
    count root's processes. Only a process that stays outside may write such a map.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0:
        syscalls.call("unshare", CLONE_NEWUSER | CLONE_NEWNS | OTHER_NAMESPACES)
        _write_maps("self", f"{uid} {uid} 1", f"{gid} {gid} 1", deny_groups=True)
        return False
    parent, (wait, go) = os.getpid(), os.pipe()
    helper = os.fork()
    if helper == 0:
        code = 1
        try:
            os.close(go)
            if os.read(wait, 1):
                ids = f"0 0 1\n{NOBODY} {NOBODY} 1"
                _write_maps(str(parent), ids, ids, deny_groups=False)
                code = 0
        finally:
            os._exit(code)
    try:
        syscalls.call("unshare", CLONE_NEWUSER | CLONE_NEWNS | OTHER_NAMESPACES)
        os.write(go, b"1")
    finally:
        os.close(wait)
        os.close(go)
        _, status = os.waitpid(helper, 0)
    if status:  # a root without CAP_SETUID
        _write_maps("self", "0 0 1", f"{gid} {gid} 1", deny_groups=True)
    return status == 0


def _write_maps(process: str, users: str, groups: str, deny_groups: bool) -> None:
    """Which users and groups of the namespace are which ones outside."""
    files = [("gid_map", groups), ("uid_map", users)]
    for name, text in [("setgroups", "deny")] * deny_groups + files:
        with open(f"/proc/{process}/{name}", "wb", buffering=0) as file:
            file.write(text.encode())


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    syscalls.call(
        "mount", source.encode(), target.encode(), kind and kind.encode(), flags, options.encode()
    )


def _set_attributes(target: str, attributes: int, flags: int = 0) -> None:
    words = struct.pack("=4Q", attributes, 0, 0, 0)  # to set, to clear, propagation, user namespace
    syscalls.call("mount_setattr", AT_FDCWD, target.encode(), flags, words, len(words))


def _mount_root(readable: list[str], stage: str) -> None:
    """Builds a root file system of the readable paths on `stage`, and makes it the only one."""
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", stage, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    bound: list[str] = []
    for path in sorted(readable, key=len):
        real = _lead_to(stage, path)
        if real == "/" or (real + "/").startswith("/tmp/"):
            raise OSError(f"{path} would have to be readable, but /tmp is a program's own there")
        if any((real + "/").startswith(other + "/") for other in bound):
            continue
        _mount(real, stage + real, None, MS_BIND | MS_REC)
        device = 0 if real.startswith("/dev/") else ATTR_NODEV
        _set_attributes(stage + real, ATTR_RDONLY | ATTR_NOSUID | device, AT_RECURSIVE)
        bound.append(real)
    for link in LINKS:
        if os.path.islink(link) and os.path.isdir(stage + os.path.dirname(link)):
            os.symlink(os.readlink(link), stage + link)
    os.mkdir(stage + "/tmp", 0o700)
    os.chdir(stage)
    syscalls.call("pivot_root", b".", b".")
    syscalls.call("umount2", b".", MNT_DETACH)  # what was the root, and now lies over it
    os.chdir("/")
    _set_attributes("/", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)


def _lead_to(root: str, path: str) -> str:
    """Recreates below `root` the folders and symbolic links that lead to `path`, and an empty
    place to mount it on; returns the path without links."""
    done, parts = "/", path.split("/")
    while parts:
        name = parts.pop(0)
        here = os.path.normpath(os.path.join(done, name))
        if os.path.islink(here):
            link = os.readlink(here)
            if not os.path.lexists(root + here):
                os.symlink(link, root + here)
            parts = link.split("/") + parts
            done = "/" if link.startswith("/") else done
            continue
        if not os.path.lexists(root + here):
            if os.path.isdir(here):
                os.mkdir(root + here, 0o755)
            else:
                os.close(os.open(root + here, os.O_CREAT | os.O_WRONLY, 0o644))
        done = here
    return done


def mount_own_folder(size: int, uid: int, gid: int) -> None:
    """An empty /tmp of at most `size` bytes for one program of this user; gone with its process."""
    syscalls.call("unshare", CLONE_NEWNS)
    options = f"size={size},nr_inodes={MAX_FILES},mode=700,uid={uid},gid={gid}"
    _mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
