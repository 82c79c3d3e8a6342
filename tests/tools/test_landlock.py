"""Landlock's interface, as far as it differs between kernels; what it does is in test_sandbox."""

import sys

import pytest

from nanochat.tools.confined import landlock


@pytest.mark.parametrize(
    "abi, words", [(1, [0x1FFF]), (2, [0x3FFF]), (3, [0x7FFF]), (4, [0x7FFF, 3]),
                   (5, [0xFFFF, 3]), (6, [0xFFFF, 3, 3]), (9, [0xFFFF, 3, 3])],
)  # fmt: skip
def test_landlock_asks_each_kernel_for_what_it_knows(abi, words):
    expected = b"".join(word.to_bytes(8, sys.byteorder) for word in words)
    assert landlock.ruleset_attributes(abi) == expected
