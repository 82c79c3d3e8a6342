"""Processes that begin with torch imported: forked from a server that has no threads.

Starting Python and importing torch takes four seconds; this takes some milliseconds.
"""

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing.connection import wait
from pathlib import Path

import torch

from nanochat import hardware
from nanochat.configurator import cli

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["pytest", "hypothesis", "matplotlib.figure", "matplotlib.backends.backend_svg"]
    + ["nanochat.engine", "scripts.base_train", "scripts.mid_train"]
    + ["scripts.chat_sft", "scripts.chat_rl", "torch.distributed.fsdp"]
)


def start(function, *arguments, **variables: str) -> multiprocessing.Process:
    """A process that runs function(*arguments); environment variables are this one's and these.

    The FLOP/s of this machine are those that were measured here, which takes a second.
    """
    environment = {**os.environ, **variables}
    flops = hardware.measure_peak_flops(torch.device("cpu"), torch.float32)
    begun = (environment, flops, function, arguments)
    process = CONTEXT.Process(target=begin, args=begun, daemon=True)
    process.start()
    return process


def begin(environment: dict, flops: float, function, arguments: tuple) -> None:
    os.environ.clear()
    os.environ.update(environment)
    hardware.measure_peak_flops = lambda device, dtype: flops
    function(*arguments)


def run_ranks(function, number: int, *arguments, **variables: str) -> None:
    """function(rank, *arguments) in `number` processes, to the end. Where one fails, whose
    traceback is printed, the others are ended too."""
    left = {}
    for rank in range(number):
        process = start(function, rank, *arguments, **variables)
        left[process.sentinel] = process
    while left:
        process = left.pop(wait(left)[0])
        process.join()
        if process.exitcode:
            for other in left.values():
                other.kill()
            raise AssertionError(f"a rank ended with {process.exitcode}")


def run_script(module: str, flags: str, output: Path | str = os.devnull) -> None:
    """What `python -m module flags` does; for a process of its own. output: what it prints is
    added to this file."""
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    sys.argv = [module, *flags.split()]
    script = importlib.import_module(module)
    cli(script.main, script.Config)


def run_code(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """As `python -c code arguments`, environment variables being this process's and these."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(execute, folder, code, arguments, **variables)
        process.join()
        printed = [Path(folder, name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(code, process.exitcode, *printed)


def execute(folder: str, code: str, arguments: tuple) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
