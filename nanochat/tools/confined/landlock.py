"""Landlock: this process may open only the files that it names beforehand, on Linux 5.13 or newer.

See the kernel's Documentation/userspace-api/landlock.rst. Landlock does not look at stat, chmod,
chown, utime, chdir or readlink; the system call filter refuses those that change something.
"""

import os
import stat
import struct

from nanochat.tools.confined import syscalls

WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in (1, 2, 3, 4, 5))
MAKE_DIR, MAKE_REG, MAKE_SYM, REFER, TRUNCATE = (1 << bit for bit in (7, 8, 12, 13, 14))
ONLY_FILES = WRITE_FILE | READ_FILE | TRUNCATE  # the rights that a rule for a single file may name
FILES = WRITE_FILE | READ_FILE | READ_DIR | REMOVE_FILE | MAKE_REG | TRUNCATE
FOLDERS = REMOVE_DIR | MAKE_DIR | MAKE_SYM | REFER


def version() -> int:
    """The kernel's version of the interface; 0 where Landlock is missing or switched off."""
    try:
        return syscalls.call("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


def ruleset_attributes(abi: int) -> bytes:
    """struct landlock_ruleset_attr: everything that this version can forbid, forbidden. Versions
    after 6 add what is not needed here."""
    words = [(1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1]  # file rights
    words += [3] * (abi >= 4)  # network rights
    words += [3] * (abi >= 6)  # scopes: abstract Unix sockets, signals to processes outside
    return struct.pack(f"={len(words)}Q", *words)


def restrict(abi: int, rules: list[tuple[int, int]]) -> None:
    """From here on this thread, and all that it starts, has only the rights of the rules.

    Rules are (descriptor of a file or folder, rights to it and all below it). Raises OSError.
    restrict(version(), [(os.open("/usr/lib", os.O_PATH), READ_FILE | READ_DIR)])
    """
    attributes = ruleset_attributes(abi)
    handled = struct.unpack_from("=Q", attributes)[0]
    ruleset = syscalls.call("landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        for descriptor, rights in rules:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                rights &= ONLY_FILES
            rule = struct.pack("=Qi", rights & handled, descriptor)
            syscalls.call("landlock_add_rule", ruleset, 1, rule, 0)
        syscalls.call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
