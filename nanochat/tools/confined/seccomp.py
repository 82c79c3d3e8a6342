"""The system calls that a sandboxed program may make, as a filter for the kernel (seccomp).

What is not listed fails with EPERM, a number newer than the list with ENOSYS, so that libc falls
back to an older call; calls by another architecture's numbers end the process. There is no exec, no
new process, no socket but a pair of connected ones, no signal to anyone else, no ptrace, no mount,
no namespace, no io_uring, no bpf, no keyring.

The filter is classic BPF as in the kernel's Documentation/userspace-api/seccomp_filter.rst.
"""

import ctypes
import errno
import struct

from nanochat.tools.confined import syscalls

# ---------------------------------------------------------------- the list

READING_AND_WRITING = """
read write readv writev lseek pread64 pwrite64 preadv pwritev close close_range dup dup2 dup3 pipe
pipe2 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
sendfile copy_file_range ftruncate fsync fdatasync flock recvfrom getsockname getsockopt shutdown
"""
# Which files these reach is decided by the mounts and by Landlock, not here.
PATHS = """
open openat stat fstat lstat newfstatat statx access faccessat faccessat2 getdents getdents64
readlink readlinkat chdir fchdir getcwd mkdir mkdirat rmdir unlink unlinkat rename renameat
renameat2 link linkat symlink symlinkat umask
"""
MEMORY_AND_TIME = """
mmap munmap mremap mprotect madvise brk clock_gettime time clock_getres clock_nanosleep nanosleep
gettimeofday times getrusage getitimer setitimer alarm pause getrandom getrlimit
"""
OWN_PROCESS = """
exit exit_group getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups
getpgrp getpgid getsid uname sched_yield sched_getaffinity getcpu rt_sigaction rt_sigprocmask
rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack restart_syscall futex
set_robust_list set_tid_address rseq wait4 waitid
"""
ALLOWED = (READING_AND_WRITING + PATHS + MEMORY_AND_TIME + OWN_PROCESS).split()
# Modes and times of files: Landlock does not look at these, so only mounts can make them safe.
METADATA = ["chmod", "fchmod", "fchmodat", "utimensat", "utime", "utimes", "truncate"]
METADATA += ["listxattr", "llistxattr", "flistxattr"]

# ---------------------------------------------------------------- calls with conditions

ALL_BITS = 0xFFFFFFFF
# What pthread_create of glibc asks for; musl adds CLONE_DETACHED, which means nothing any more.
# subtle: equal to these flags, and not merely with CLONE_THREAD, so that no namespace bit passes.
THREAD_FLAGS, CLONE_DETACHED = 0x3D0F00, 0x400000
# No F_SETOWN and F_SETSIG: they send any signal to any process of the same user.
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)  # DUPFD, flags, locks, DUPFD_CLOEXEC
IOCTL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # isatty, size, FIONREAD, ...
SET_NAME, GET_NAME = 15, 16


def low(argument: int) -> int:
    """Which 32-bit word of the arguments holds the lower half of this one (little endian)."""
    return 2 * argument


def is_null(argument: int) -> list[tuple]:
    """The conditions that a pointer is 0, all 64 bits of it."""
    return [(low(argument), ALL_BITS, (0,)), (low(argument) + 1, ALL_BITS, (0,))]


# name: [(word, mask, values that the masked word may have), ...]
CONDITIONAL = {
    "fcntl": [(low(1), ALL_BITS, FCNTL_COMMANDS)],
    "ioctl": [(low(1), ALL_BITS, IOCTL_REQUESTS)],
    "prctl": [(low(0), ALL_BITS, (SET_NAME, GET_NAME))],
    "prlimit64": [(low(0), ALL_BITS, (0,)), *is_null(2)],  # asking, of itself
    "socketpair": [(low(0), ALL_BITS, (1,)), (low(1), 0xF, (1,))],  # unix, stream
    "sendto": is_null(4),  # on a connected pair, never to an address
}
THREADS = {"clone": [(low(0), ALL_BITS & ~CLONE_DETACHED, (THREAD_FLAGS,))]}
NEWER_THAN_THIS_LIST = 450

# ---------------------------------------------------------------- the assembler

LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
DENY, UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
OFFSET_NUMBER, OFFSET_ARCHITECTURE, OFFSET_ARGUMENTS = 0, 4, 16
AUDIT_ARCHITECTURES = (0xC000003E, 0xC00000B7)
X32_BIT = 0x40000000  # x86_64's other way of calling, with 32-bit pointers


def _op(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, k)


def _if_number(number: int, block: bytes) -> bytes:
    """Runs the block, which must end in a return, for this call; the number stays loaded."""
    return _op(JUMP_EQUAL, number, 0, len(block) // 8) + block


def _if_arguments(conditions: list[tuple]) -> bytes:
    """Allows the call when every condition holds, denies it otherwise."""
    block = b""
    for word, mask, values in conditions:
        block += _op(LOAD, OFFSET_ARGUMENTS + 4 * word) + _op(AND, mask)
        for i, value in enumerate(values):
            block += _op(JUMP_EQUAL, value, len(values) - i)  # past the denial
        block += _op(RETURN, DENY)
    return block + _op(RETURN, ALLOW)


def build(pid: int, architecture: int, *, threads: bool, metadata: bool) -> bytes:
    """The filter for the process `pid`, which may send signals to itself only; 8 bytes an
    instruction. threads: it may start threads. metadata: it may change modes and times of files,
    where all writable mounts are its own."""
    number_of = {name: numbers[architecture] for name, numbers in syscalls.numbers().items()}
    to_itself = [(low(0), ALL_BITS, (pid,))]
    conditional = CONDITIONAL | (THREADS if threads else {})
    conditional |= {"kill": to_itself, "tgkill": to_itself}
    program = _op(LOAD, OFFSET_ARCHITECTURE)
    program += _op(JUMP_EQUAL, AUDIT_ARCHITECTURES[architecture], 1) + _op(RETURN, KILL_PROCESS)
    program += _op(LOAD, OFFSET_NUMBER)
    program += _op(JUMP_GREATER_EQUAL, X32_BIT, 0, 1) + _op(RETURN, KILL_PROCESS)
    for name in ALLOWED + (METADATA if metadata else []):
        if number_of[name] is not None:
            program += _if_number(number_of[name], _op(RETURN, ALLOW))
    for name, conditions in conditional.items():
        program += _if_number(number_of[name], _if_arguments(conditions))
    # clone3's flags lie in memory, where a filter cannot look; libc then uses clone
    program += _if_number(number_of["clone3"], _op(RETURN, UNKNOWN))
    program += _op(JUMP_GREATER_EQUAL, NEWER_THAN_THIS_LIST, 0, 1) + _op(RETURN, UNKNOWN)
    return program + _op(RETURN, DENY)


def install(program: bytes) -> None:
    """Puts this thread, and all that it starts, under the filter for good, after
    PR_SET_NO_NEW_PRIVS. Raises OSError."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    described = Program(len(program) // 8, program)
    syscalls.prctl(syscalls.PR_SET_SECCOMP, 2, ctypes.byref(described))
