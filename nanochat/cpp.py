"""C++ of ours, compiled at first use (some seconds) and kept under $NANOCHAT_BASE_DIR.

A library is named after its sources, compiler and platform; several processes may make it.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from nanochat.common import print0
from nanochat.files import base_dir, write_atomic

INSTALL = "To get one: Debian, Ubuntu: apt install g++; macOS: xcode-select --install; conda: gxx"
NO_COMPILER = f"no C++ compiler (looked for $CXX, g++, clang++, c++). {INSTALL}"

FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=fast",
         "-fno-strict-aliasing")  # fmt: skip
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
OF_PROCESSOR = {"avx2": ("-mavx2", "-mfma"), "avx512": AVX512,
                "avx512_bf16": (*AVX512, "-mavx512bf16", "-mavx512vnni"),
                "neon_dot": ("-march=armv8.2-a+dotprod",)}  # fmt: skip
# subtle: the threads are PyTorch's own, whose library is loaded already
OPENMP = {"darwin": ("-Xclang", "-fopenmp", "-undefined", "dynamic_lookup")}
AT_HWCAP, HWCAP_ASIMDDP = 16, 1 << 20  # Linux; Apple's compilers take this instruction for granted


class Source(NamedTuple):
    """What is compiled to one library."""

    name: str  # of the folder below $NANOCHAT_BASE_DIR; functions and printed lines begin with it
    files: tuple[Path, ...]  # the first is compiled, the others are included by it
    flags: tuple[str, ...]
    functions: dict[str, tuple[tuple, type | None]]  # what each takes and returns


def cpp_compiler() -> str | None:
    """The C++ compiler that Inductor would find, with its arguments: $CXX, g++, clang++ or c++."""
    for name in filter(None, (os.environ.get("CXX", "").strip(), "g++", "clang++", "c++")):
        first, *arguments = shlex.split(name)
        if path := shutil.which(first):
            return shlex.join([path, *arguments])
    return None


def processor() -> str:
    """This one's key of OF_PROCESSOR, or another word."""
    if platform.machine() == "aarch64" and ctypes.CDLL(None).getauxval(AT_HWCAP) & HWCAP_ASIMDDP:
        return "neon_dot"
    capability = torch.backends.cpu.get_cpu_capability().lower()
    bfloat16 = capability == "avx512" and torch.cpu._is_avx512_bf16_supported()
    return "avx512_bf16" if bfloat16 else capability


@cache
def load_openmp(name: str, processor: str, instead: str, **functions) -> SimpleNamespace | None:
    """load of nanochat/<name>.cpp, for a kind of processor."""
    folder = Path(__file__).parent
    files = folder / f"{name}.cpp", folder / "vectors.h"
    flags = *FLAGS, *OPENMP.get(sys.platform, ("-fopenmp",)), *OF_PROCESSOR.get(processor, ())
    return load(Source(name, files, flags, functions), cpp_compiler(), instead)


def addresses(*tensors: torch.Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def load(source: Source, compiler: str | None, instead: str) -> SimpleNamespace | None:
    """The functions, `bpe_learn` as `learn`; None without a compiler that works: a line says what
    is used instead."""
    name = source.name
    if compiler is None:
        print0(f"{name}: {NO_COMPILER}. Meanwhile {instead}")
        return None
    named = os.environ.get("CXX", "").strip()
    if named and not shutil.which(shlex.split(named)[0]):
        print0(f"{name}: CXX={named!r} is not there; {compiler} is used")
    try:
        library = ctypes.CDLL(str(compile_library(source, compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = " ".join(f"{error} {getattr(error, 'stderr', '')}".split())
        print0(
            f"{name}: the C++ compiler {compiler} does not work ({reason[-300:]}), so {instead}. "
            f"Mend it, or name another in CXX. {INSTALL}"
        )
        return None
    functions = {short: getattr(library, f"{name}_{short}") for short in source.functions}
    for short, function in functions.items():
        function.argtypes, function.restype = source.functions[short]
    return SimpleNamespace(**functions)


def compile_library(source: Source, compiler: str) -> Path:
    """The library's path; compiled if it is not there."""
    command = shlex.split(compiler)
    run = partial(subprocess.run, capture_output=True, text=True, errors="replace", check=True)
    identity = [run([*command, "--version"]).stdout, shlex.join([*command[1:], *source.flags])]
    identity += [platform.system(), platform.machine(), *(f.read_text() for f in source.files)]
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()
    path = base_dir() / source.name / f"{digest[:20]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(prefix="nanochat-cpp-") as folder:
            new = Path(folder) / "new.so"
            run([*command, *source.flags, str(source.files[0]), "-o", str(new)])
            write_atomic(path, new.read_bytes())
    return path
