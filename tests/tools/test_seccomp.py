"""The system call filter, run by a BPF machine in plain Python, for both architectures."""

import os
import re
import struct
from pathlib import Path

import pytest

from nanochat.tools.confined import seccomp, syscalls

HEADERS = {
    0: "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    1: "/usr/include/asm-generic/unistd.h",
}


@pytest.mark.parametrize("architecture", [0, 1], ids=syscalls.ARCHITECTURES)
def test_numbers_are_the_kernels(architecture):
    if not os.path.exists(HEADERS[architecture]):
        pytest.skip(f"needs {HEADERS[architecture]} (Debian: linux-libc-dev)")
    lines = re.findall(
        r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(HEADERS[architecture]).read_text()
    )
    numbers = {name: int(number) for name, number in lines}
    numbers.setdefault("newfstatat", numbers.get("fstatat"))
    table = syscalls.numbers()
    wrong = {n: v for n, v in table.items() if v[architecture] not in (None, numbers.get(n))}
    missing = [n for n, v in table.items() if v[architecture] is None and n in numbers]
    assert not wrong and not missing


def decide(filter_: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel would return: the slow twin of its BPF machine."""
    words = [number, seccomp.AUDIT_ARCHITECTURES[architecture], 0, 0]
    for argument in (*arguments, *[0] * 6)[:6]:
        words += [argument & 0xFFFFFFFF, argument >> 32]
    position = accumulator = 0
    while True:
        code, if_true, if_false, k = struct.unpack_from("=HBBI", filter_, 8 * position)
        position += 1
        if code == seccomp.RETURN:
            return k
        if code == seccomp.LOAD:
            accumulator = words[k // 4]
        elif code == seccomp.AND:
            accumulator &= k
        else:
            compare = {seccomp.JUMP_EQUAL: accumulator == k}
            compare[seccomp.JUMP_GREATER_EQUAL] = accumulator >= k
            position += if_true if compare[code] else if_false


@pytest.mark.parametrize("architecture", [0, 1], ids=syscalls.ARCHITECTURES)
@pytest.mark.parametrize("threads", [True, False])
@pytest.mark.parametrize("metadata", [True, False])
def test_the_filter_decides_as_its_table_says(architecture, threads, metadata):
    filter_ = seccomp.build(7, architecture, threads=threads, metadata=metadata)
    conditional = seccomp.CONDITIONAL | (seccomp.THREADS if threads else {})
    number_of = {name: numbers[architecture] for name, numbers in syscalls.numbers().items()}
    conditional = {number_of[name] for name in (*conditional, "kill", "tgkill")}
    names = seccomp.ALLOWED + (seccomp.METADATA if metadata else [])
    allowed = {number_of[name] for name in names} - {None}
    for number in range(600):
        decision = decide(filter_, architecture, number, *[0x777700007777] * 6)
        if number in allowed:
            assert decision == seccomp.ALLOW
        elif number == 435 or number >= 450:
            assert decision == seccomp.UNKNOWN
        else:
            assert decision == seccomp.DENY, number
    assert len(filter_) // 8 < 4096  # the kernel's limit
    assert not allowed & conditional


@pytest.mark.parametrize(
    "name, arguments, allowed",
    [("kill", (7, 9), True), ("kill", (8, 9), False), ("kill", (0, 9), False),
     ("kill", (2**32 - 1, 9), False), ("kill", (2**64 - 7, 9), False), ("tgkill", (7, 8, 9), True),
     ("tgkill", (1, 1, 9), False), ("clone", (0x3D0F00,), True), ("clone", (0x7D0F00,), True),
     ("clone", (17,), False), ("clone", (0x103D0F00,), False), ("fcntl", (3, 4, 0x2000), True),
     ("fcntl", (3, 8, 7), False), ("fcntl", (3, 10, 9), False), ("fcntl", (3, 1030), True),
     ("ioctl", (0, 0x5401), True), ("ioctl", (0, 0x5412), False), ("prctl", (15, 5), True),
     ("prctl", (4, 1), False), ("prlimit64", (0, 7, 0, 99), True), ("prlimit64", (0, 7, 1), False),
     ("prlimit64", (0, 7, 1 << 32), False), ("prlimit64", (9, 7, 0), False),
     ("socketpair", (1, 1), True), ("socketpair", (1, 0x80801), True),
     ("socketpair", (1, 2), False),
     ("socketpair", (2, 1), False), ("sendto", (3, 9, 9, 0, 0), True),
     ("sendto", (3, 9, 9, 0, 1), False), ("sendto", (3, 9, 9, 0, 1 << 32), False)],
)  # fmt: skip
@pytest.mark.parametrize("architecture", [0, 1], ids=syscalls.ARCHITECTURES)
def test_conditions(architecture, name, arguments, allowed):
    number = syscalls.numbers()[name][architecture]
    filter_ = seccomp.build(7, architecture, threads=True, metadata=True)
    decision = decide(filter_, architecture, number, *arguments)
    assert decision == (seccomp.ALLOW if allowed else seccomp.DENY)


def test_other_architectures_are_killed():
    filter_ = seccomp.build(7, 0, threads=True, metadata=True)
    assert decide(filter_, 1, 0) == seccomp.KILL_PROCESS  # aarch64's numbers under x86_64's filter
    assert decide(filter_, 0, seccomp.X32_BIT) == seccomp.KILL_PROCESS
