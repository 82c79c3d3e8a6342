"""core.cpp, compiled at first use (about 3 seconds) and kept under $NANOCHAT_BASE_DIR/bpe.

A folder there is named after the source, the compiler and the platform. It holds the library and
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
from functools import cache
from pathlib import Path

from nanochat.common import ConfigError, base_dir, cpp_compiler, print0

SOURCES = [Path(__file__).with_name(name) for name in ("core.cpp", "scanner.h", "unicode_ranges.h")]
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-pthread"]
SLOWER = "training then takes about 1.5 s a megabyte and encoding 0.4 s, a hundred times as long"
INSTALL = "Debian, Ubuntu: apt install g++; macOS: xcode-select --install; conda: gxx"


class CompileError(Exception):
    """The compiler failed, or what it made cannot be loaded."""


def library() -> ctypes.CDLL | None:
    """core.cpp as a library, or None where Python has to do: then one line has said why.

    NANOCHAT_BPE=python forces that. Raises ConfigError for another value of the variable.
    """
    wanted = os.environ.get("NANOCHAT_BPE", "")
    if wanted not in ("", "python"):
        raise ConfigError(f"NANOCHAT_BPE={wanted!r} is unknown; choose python, or leave it unset")
    return _library(wanted, cpp_compiler())


@cache
def _library(wanted: str, compiler: str | None) -> ctypes.CDLL | None:
    """library(), once a process: so a line is printed once."""
    if wanted == "python":
        print0(f"bpe: NANOCHAT_BPE=python, so the Python reference is used: {SLOWER}")
        return None
    if compiler is None:
        print0(
            f"bpe: no C++ compiler (looked for $CXX, g++, clang++, c++), so the Python reference "
            f"is used: {SLOWER}. To get one: {INSTALL}"
        )
        return None
    named = os.environ.get("CXX", "").strip()
    if named and not shutil.which(shlex.split(named)[0]):
        print0(f"bpe: CXX={named!r} is not there; {compiler} is used")
    try:
        return loaded(compiler)
    except (CompileError, OSError) as error:
        reason = " ".join(str(error).split())
        print0(
            f"bpe: the C++ compiler {compiler} does not work ({reason[-300:]}), so the Python "
            f"reference is used: {SLOWER}. Mend it, or name another in CXX. To get one: {INSTALL}"
        )
        return None


def loaded(compiler: str) -> ctypes.CDLL:
    """The library, compiled and kept; where nothing can be kept, for this process alone."""
    try:
        path = compiled(compiler, base_dir() / "bpe")
    except OSError as error:
        print0(f"bpe: what is compiled cannot be kept, so every process compiles anew: {error}")
        with tempfile.TemporaryDirectory(prefix="nanochat-bpe-") as folder:
            return ctypes.CDLL(str(compiled(compiler, Path(folder))))
    return ctypes.CDLL(str(path))


def compiled(compiler: str, folder: Path) -> Path:
    """The library's path below `folder`, compiled if it is not there or damaged.

    compiler: a command, with arguments if need be. Raises CompileError, OSError for the folder.
    """
    command = shlex.split(compiler)
    version = run([*command, "--version"])
    identity = [*(source.read_bytes() for source in SOURCES), version.encode()]
    identity += [
        shlex.join([*command[1:], *FLAGS]).encode(),
        f"{platform.system()} {platform.machine()}".encode(),
    ]
    digest = hashlib.sha256(b"\0".join(identity)).hexdigest()
    place = folder / digest[:20]
    if not is_whole(place):
        if place.exists():
            print0(f"bpe: {place} is damaged; compiling again")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
            build(compiler, Path(temporary) / "new")
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


def build(compiler: str, folder: Path) -> None:
    """Makes `folder` with the library, and its hash."""
    folder.mkdir()
    target = folder / "core.so"
    run([*shlex.split(compiler), *FLAGS, str(SOURCES[0]), "-o", str(target)])
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
