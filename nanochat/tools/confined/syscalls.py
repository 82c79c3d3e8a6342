"""Linux system calls that the sandbox needs and Python does not offer, on x86_64 and aarch64."""

import ctypes
import functools
import json
import os
import platform
import struct

ARCHITECTURES = ("x86_64", "aarch64")
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 4, 22
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
CAPABILITY_VERSION_3 = 0x20080522


@functools.cache
def numbers() -> dict[str, list[int | None]]:
    """The number of each call on x86_64 and aarch64, None where there is none."""
    with open(os.path.join(os.path.dirname(__file__), "syscalls.json"), "rb") as file:
        return json.load(file)


def architecture() -> int:
    """This processor's place in ARCHITECTURES; OSError where it has none."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(f"system call numbers are known for {ARCHITECTURES}, not for {machine}")
    return ARCHITECTURES.index(machine)


@functools.cache
def _syscall():
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    return function


def call(name: str, *arguments) -> int:
    """Makes the system call; arguments are integers, bytes, None or ctypes pointers.

    Raises OSError with the call's name. call("umount2", b"/tmp", 2) detaches what is mounted there.
    """
    number = numbers()[name][architecture()]
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = _syscall()(ctypes.c_long(number), *words)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def prctl(option: int, *arguments) -> int:
    """prctl(2), its unused arguments zero, as the kernel demands."""
    return call("prctl", option, *arguments, *[0] * (4 - len(arguments)))


def drop_capabilities() -> None:
    """Empties this thread's capability sets, and forbids that an exec could give any back."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    call("capset", header, bytes(24))  # twice effective, permitted, inheritable: none of them
    prctl(PR_SET_NO_NEW_PRIVS, 1)
