"""Processes that begin with torch imported: forked from a server that has no threads.

Starting Python and importing torch takes four seconds; this takes some milliseconds.
"""

import importlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
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


# ---------------------------------------------------------------- for programs that start Python

CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4)], [0, 1, 2])
server.sendall(request)
sys.exit(int(server.recv(9) or 1))
"""


@contextmanager
def forked_python(folder: Path):
    """The path of a program that does what `python -m module flags` does, in a process that begins
    with torch imported; for what starts sys.executable itself. Where the program is killed, its
    process is asked to end."""
    program, address = folder / "python", str(folder / "socket")
    program.write_text(CLIENT.format(python=sys.executable, address=address))
    program.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    flops = hardware.measure_peak_flops(torch.device("cpu"), torch.float32)
    begun = (dict(os.environ), flops, fork_for_each, (listener,))
    server = CONTEXT.Process(target=begin, args=begun)  # no daemon: that may start no process
    server.start()
    listener.close()
    yield program
    server.kill()
    server.join()


def fork_for_each(listener: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who have answered are no zombies
    while True:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return answer(client)
        client.close()


def answer(client: socket.socket) -> None:
    """Runs the module that a client names, in another process; tells the client its exit status."""
    size, files, *_ = socket.recv_fds(client, 4, 3)
    request = client.makefile("rb").read(int.from_bytes(size))
    end, held = os.pipe()  # `held` is closed by the process's end
    process = os.fork()
    if process == 0:
        client.close()
        return run_module(*json.loads(request), files)
    for file in (held, *files):
        os.close(file)
    if client in wait([client, end]):  # the client is gone
        os.kill(process, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with suppress(OSError):
        client.sendall(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


def run_module(arguments: list[str], folder: str, environment: dict, files: list[int]) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    option, module, *flags = arguments
    assert option == "-m", arguments
    sys.path.insert(0, folder)
    sys.argv = [module, *flags]
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
