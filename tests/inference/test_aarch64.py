"""The decoder for aarch64, cross-compiled and run by qemu, against the one for this machine."""

import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nanochat.cpp import FLAGS, OF_PROCESSOR, cpp_compiler

DRIVER = Path(__file__).with_name("decoder_sanitize.cpp")


def logits(compiler: list[str], run: list[str], program: Path) -> np.ndarray:
    """Those that the driver writes; it fails where bits depend on other rows or on threads."""
    flags = [flag for flag in FLAGS if flag not in ("-shared", "-fPIC")]
    subprocess.run([*compiler, *flags, "-static", DRIVER, "-o", program], check=True)
    written = subprocess.run([*run, program, "write"], stdout=subprocess.PIPE, check=True).stdout
    return np.frombuffer(written, np.float32)


@pytest.mark.slow
def test_aarch64_computes_what_this_machine_does(tmp_path):
    """With and without dot products of bytes, each on a processor with no more than it needs."""
    cross, here = shutil.which("aarch64-linux-gnu-g++"), cpp_compiler()
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if not (cross and qemu and here):
        pytest.skip("needs a C++ compiler and Debian's g++-aarch64-linux-gnu and qemu-user")
    plain = logits([cross], [qemu, "-cpu", "cortex-a72"], tmp_path / "plain")
    dot = [cross, *OF_PROCESSOR["neon_dot"]]
    assert np.array_equal(plain, logits(dot, [qemu, "-cpu", "neoverse-n1"], tmp_path / "dot"))
    error = np.abs(plain - logits(shlex.split(here), [], tmp_path / "here"))
    assert np.quantile(error, 0.95) < 1e-4  # int8 may round halves either way
