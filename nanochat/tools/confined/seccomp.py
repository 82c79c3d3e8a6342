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

# ---------------------------------------------------------------- the list: (x86_64, aarch64)

READING_AND_WRITING = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "lseek": (8, 62),
    "pread64": (17, 67), "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70),
    "close": (3, 57), "close_range": (436, 436), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None),
    "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None),
    "epoll_pwait": (281, 22), "sendfile": (40, 71), "copy_file_range": (326, 285),
    "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83), "flock": (73, 32),
    "recvfrom": (45, 207), "getsockname": (51, 204), "getsockopt": (55, 209), "shutdown": (48, 210),
}  # fmt: skip
# Which files these reach is decided by the mounts and by Landlock, not here.
PATHS = {
    "open": (2, None), "openat": (257, 56), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "getdents": (78, None),
    "getdents64": (217, 61), "readlink": (89, None), "readlinkat": (267, 78), "chdir": (80, 49),
    "fchdir": (81, 50), "getcwd": (79, 17), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37),
    "symlink": (88, None), "symlinkat": (266, 36), "umask": (95, 166),
}  # fmt: skip
MEMORY_AND_TIME = {
    "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226),
    "madvise": (28, 233), "brk": (12, 214), "clock_gettime": (228, 113), "time": (201, None),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "times": (100, 153), "getrusage": (98, 165),
    "getitimer": (36, 102), "setitimer": (38, 103), "alarm": (37, None), "pause": (34, None),
    "getrandom": (318, 278), "getrlimit": (97, 163),
}  # fmt: skip
OWN_PROCESS = {
    "exit": (60, 93), "exit_group": (231, 94), "getpid": (39, 172), "getppid": (110, 173),
    "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150),
    "getgroups": (115, 158), "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156),
    "uname": (63, 160), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "getcpu": (309, 168), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "futex": (202, 98), "set_robust_list": (273, 99), "set_tid_address": (218, 96),
    "rseq": (334, 293), "wait4": (61, 260), "waitid": (247, 95),
}  # fmt: skip
ALLOWED = READING_AND_WRITING | PATHS | MEMORY_AND_TIME | OWN_PROCESS
# Modes and times of files: Landlock does not look at these, so only mounts can make them safe.
METADATA = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "utimensat": (280, 88),
    "utime": (132, None), "utimes": (235, None), "truncate": (76, 45), "listxattr": (194, 11),
    "llistxattr": (195, 12), "flistxattr": (196, 13),
}  # fmt: skip

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


# name: (its numbers, [(word, mask, values that the masked word may have), ...])
CONDITIONAL = {
    "fcntl": ((72, 25), [(low(1), ALL_BITS, FCNTL_COMMANDS)]),
    "ioctl": ((16, 29), [(low(1), ALL_BITS, IOCTL_REQUESTS)]),
    "prctl": ((157, 167), [(low(0), ALL_BITS, (SET_NAME, GET_NAME))]),
    "prlimit64": ((302, 261), [(low(0), ALL_BITS, (0,)), *is_null(2)]),  # asking, of itself
    "socketpair": ((53, 199), [(low(0), ALL_BITS, (1,)), (low(1), 0xF, (1,))]),  # unix, stream
    "sendto": ((44, 206), is_null(4)),  # on a connected pair, never to an address
}
THREADS = {"clone": ((56, 220), [(low(0), ALL_BITS & ~CLONE_DETACHED, (THREAD_FLAGS,))])}
CLONE3 = (435, 435)  # its flags lie in memory, where a filter cannot look; libc then uses clone
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
    conditional = CONDITIONAL | (THREADS if threads else {})
    to_itself = [(low(0), ALL_BITS, (pid,))]
    conditional |= {"kill": ((62, 129), to_itself), "tgkill": ((234, 131), to_itself)}
    allowed = ALLOWED | (METADATA if metadata else {})
    program = _op(LOAD, OFFSET_ARCHITECTURE)
    program += _op(JUMP_EQUAL, AUDIT_ARCHITECTURES[architecture], 1) + _op(RETURN, KILL_PROCESS)
    program += _op(LOAD, OFFSET_NUMBER)
    program += _op(JUMP_GREATER_EQUAL, X32_BIT, 0, 1) + _op(RETURN, KILL_PROCESS)
    for numbers in allowed.values():
        if numbers[architecture] is not None:
            program += _if_number(numbers[architecture], _op(RETURN, ALLOW))
    for numbers, conditions in conditional.values():
        program += _if_number(numbers[architecture], _if_arguments(conditions))
    program += _if_number(CLONE3[architecture], _op(RETURN, UNKNOWN))
    program += _op(JUMP_GREATER_EQUAL, NEWER_THAN_THIS_LIST, 0, 1) + _op(RETURN, UNKNOWN)
    return program + _op(RETURN, DENY)


def install(program: bytes) -> None:
    """Puts this thread, and all that it starts, under the filter for good, after
    PR_SET_NO_NEW_PRIVS. Raises OSError."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    described = Program(len(program) // 8, program)
    syscalls.prctl(syscalls.PR_SET_SECCOMP, 2, ctypes.byref(described))
