"""Tests of C++ that is compiled for each set of instructions."""

import pytest

from nanochat.cpp import OF_PROCESSOR, processor

X86 = ["avx2", "avx512", "avx512_bf16"]  # each has those before it


def check(name: str) -> None:
    """Skips the test unless this processor has the instructions."""
    here = processor()
    if name not in ("portable", *(X86[: X86.index(here) + 1] if here in X86 else [here])):
        pytest.skip("this processor has other instructions")


each_set = pytest.mark.parametrize("instructions", ["portable", *OF_PROCESSOR])
