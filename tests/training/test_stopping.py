"""Signals end a run after the step that it is in."""

import io
import os
import signal
import sys

import pytest
from forked import run_code

from nanochat.training.stopping import stop_on_signals


@pytest.mark.skipif(os.name != "posix", reason="signals of Unix")
def test_a_signal_that_comes_in_a_print(monkeypatch, capfd):
    """Where another print raises RuntimeError, "reentrant call"."""

    signals = [signal.SIGTERM]

    class Interrupted(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            if signals:
                os.kill(os.getpid(), signals.pop())
            return len(data)

    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as asked:
        stream = io.TextIOWrapper(io.BufferedWriter(Interrupted()))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert not asked()
            print("step 1", flush=True)
        assert asked() and signal.getsignal(signal.SIGTERM) is before
    assert "SIGTERM: saving after this step" in capfd.readouterr().out


@pytest.mark.slow
def test_a_signal_when_nobody_reads_the_output():
    """The reader of a pipe is gone, as in `| head -1`: the run goes on to its save."""
    found = run_code("""
import os, signal
from nanochat.training.stopping import stop_on_signals
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
with stop_on_signals() as asked:
    os.kill(os.getpid(), signal.SIGTERM)
    os.write(2, b"saved" if asked() else b"went on")
""")
    assert found.returncode == 0 and found.stderr == "saved"
