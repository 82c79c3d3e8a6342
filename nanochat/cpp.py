"""C++ of ours, compiled at first use (some seconds) and kept under $NANOCHAT_BASE_DIR.

A folder there is named after the sources, the compiler and the platform. It holds the library and
its SHA-256, is made beside its place and renamed into it, so that several processes may compile at
once: one wins, all use its library.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from nanochat.common import print0
from nanochat.files import base_dir

INSTALL = "Debian, Ubuntu: apt install g++; macOS: xcode-select --install; conda: gxx"


class Source(NamedTuple):
    """What is compiled to one library."""

    name: str  # of the folder below $NANOCHAT_BASE_DIR, and what printed lines begin with
    files: tuple[Path, ...]  # the first is compiled, the others are included by it
    flags: tuple[str, ...]


class CompileError(Exception):
    """The compiler failed, or what it made cannot be loaded."""


def cpp_compiler() -> str | None:
    """The command, for shlex.split, of the C++ compiler that Inductor would find: $CXX (which may
    have arguments), g++, clang++ or c++; None without one."""
    for name in filter(None, (os.environ.get("CXX", "").strip(), "g++", "clang++", "c++")):
        first, *arguments = shlex.split(name)
        if path := shutil.which(first):
            return shlex.join([path, *arguments])
    return None


def load(source: Source, compiler: str | None, instead: str) -> ctypes.CDLL | None:
    """The library, or None where there is no compiler or it fails; then one line says so.

    instead: what is used then, for that line.
    """
    name = source.name
    if compiler is None:
        print0(
            f"{name}: no C++ compiler (looked for $CXX, g++, clang++, c++), so {instead}. "
            f"To get one: {INSTALL}"
        )
        return None
    named = os.environ.get("CXX", "").strip()
    if named and not shutil.which(shlex.split(named)[0]):
        print0(f"{name}: CXX={named!r} is not there; {compiler} is used")
    try:
        return compile_and_load(source, compiler)
    except (CompileError, OSError) as error:
        reason = " ".join(str(error).split())
        print0(
            f"{name}: the C++ compiler {compiler} does not work ({reason[-300:]}), so {instead}. "
            f"Mend it, or name another in CXX. To get one: {INSTALL}"
        )
        return None


def compile_and_load(source: Source, compiler: str) -> ctypes.CDLL:
    """The library, compiled and kept; where nothing can be kept, for this process alone."""
    try:
        path = compiled(source, compiler, base_dir() / source.name)
    except OSError as error:
        print0(
            f"{source.name}: what is compiled cannot be kept, so every process compiles anew: "
            f"{error}"
        )
        with tempfile.TemporaryDirectory(prefix="nanochat-cpp-") as folder:
            return ctypes.CDLL(str(compiled(source, compiler, Path(folder))))
    return ctypes.CDLL(str(path))


def compiled(source: Source, compiler: str, folder: Path) -> Path:
    """The library's path below `folder`, compiled if it is not there or damaged.

    compiler: a command, with arguments if need be. Raises CompileError, OSError for the folder.
    """
    command = shlex.split(compiler)
    version = run([*command, "--version"])
    identity = [*(file.read_bytes() for file in source.files), version.encode()]
    identity += [
        shlex.join([*command[1:], *source.flags]).encode(),
        f"{platform.system()} {platform.machine()}".encode(),
    ]
    digest = hashlib.sha256(b"\0".join(identity)).hexdigest()
    place = folder / digest[:20]
    if not is_whole(place):
        if place.exists():
            print0(f"{source.name}: {place} is damaged; compiling again")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
            build(source, compiler, Path(temporary) / "new")
            install(Path(temporary) / "new", place)
    return place / "core.so"


def run(command: list[str]) -> str:
    """What a command prints; CompileError, with what it said last, if it fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise CompileError(str(error)) from error
    if result.returncode:
        said = (result.stderr or result.stdout).strip()
        raise CompileError(f"exit status {result.returncode}: {said or 'it said nothing'}")
    return result.stdout


def build(source: Source, compiler: str, folder: Path) -> None:
    """Makes `folder` with the library, and its hash."""
    folder.mkdir()
    target = folder / "core.so"
    run([*shlex.split(compiler), *source.flags, str(source.files[0]), "-o", str(target)])
    if not target.exists():
        raise CompileError("exit status 0, but it wrote no library")
    (folder / "sha256").write_text(hashlib.sha256(target.read_bytes()).hexdigest())


def is_whole(folder: Path) -> bool:
    """Whether the folder holds a library with the hash that stands beside it."""
    # subtle: a truncated library would not fail to load, it would end the process (SIGBUS).
    try:
        found = hashlib.sha256((folder / "core.so").read_bytes()).hexdigest()
        return found == (folder / "sha256").read_text()
    except (OSError, UnicodeDecodeError):
        return False


def install(new: Path, place: Path) -> None:
    """Renames `new` to `place`, unless another process was first; what is damaged makes room."""
    for _ in range(10):
        try:
            new.rename(place)
            return
        except OSError:
            if is_whole(place):
                return
            damaged = Path(tempfile.mkdtemp(dir=new.parent, prefix="damaged-"))
            try:
                place.rename(damaged / "it")
            except FileNotFoundError:
                continue
    raise CompileError(f"{place} could not be replaced; remove it")
