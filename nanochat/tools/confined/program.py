"""One program's process: a fork of the warm interpreter, which is confined and then runs the text.

What is imported here lies open to the program.
"""

import contextlib
import fcntl
import os
import sys
import types
from collections.abc import Callable
from typing import NoReturn

SOURCE, MARKER = 3, 4  # descriptors of a program's process
# The end marker is a nonce, one of these, and text.
PASSED, FAILED, EXITED, MEMORY = b"P", b"F", b"E", b"M"
NONCE_BYTES = 16
MAX_ERROR = 2000  # characters of an error's text
PROGRAM = "<program>"


def run_program(
    confine: Callable[[], None], source: int, output: int, marker: int, report: int
) -> NoReturn:
    """Confines this process, reads the text, runs it, writes the end marker.

    All arguments but the first are descriptors. If it cannot be confined, it says so on `report`
    and runs nothing.
    subtle: the nonce stays in the pipe until the program has ended, so that it is in no memory of
    this process while the program runs, and what is called afterwards was looked up before.
    """
    leave, read, write, say = os._exit, os.read, os.write, describe
    streams = (sys.stdout, sys.stderr)
    try:
        # out of the way of the fixed numbers first
        source, output, marker = (
            fcntl.fcntl(d, fcntl.F_DUPFD, 16) for d in (source, output, marker)
        )
        null = os.open(os.devnull, os.O_RDWR)  # its own: its flags must not outlive it
        for descriptor, number in ((null, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, number)
        try:
            confine()
        except Exception as error:  # whatever it was: reported, and the program is not run
            os.write(report, f"{type(error).__name__}: {error}".encode()[:200])
            leave(1)
        os.dup2(source, SOURCE)
        os.dup2(marker, MARKER)
        os.closerange(MARKER + 1, 4096)
        length = int.from_bytes(read_exactly(SOURCE, 8), "little")
        text = read_exactly(SOURCE, length).decode("utf-8", "surrogatepass")
        kind, error = execute(text, say)
        for stream in streams:
            with contextlib.suppress(BaseException):  # the program may have closed or changed it
                stream.flush()
        nonce = read(SOURCE, NONCE_BYTES)
        write(MARKER, nonce + kind + error.encode("utf-8", "backslashreplace"))
        leave(0)
    finally:
        leave(1)


def read_exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (part := os.read(descriptor, min(size - len(data), 1 << 16))):
            raise OSError("the program's text ended early")
        data += part
    return data


def execute(text: str, say) -> tuple[bytes, str]:
    """Runs the text as the module __main__; how it ended, and the error in words."""
    passed, failed, exited, memory = PASSED, FAILED, EXITED, MEMORY  # before they can be changed
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = [PROGRAM]
    try:
        exec(compile(text, PROGRAM, "exec"), module.__dict__)
    except SystemExit as error:
        return exited, say(error)
    except MemoryError as error:
        return memory, say(error)
    except BaseException as error:  # anything that it raises is its failure
        return failed, say(error)
    return passed, ""


def describe(error: BaseException) -> str:
    """ "AssertionError: text (line 3)"; the text comes from the program, so it may be anything."""
    line, step = 0, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == PROGRAM:
            line = step.tb_lineno
        step = step.tb_next
    name = type(error).__name__  # a SyntaxError's text names the line
    where = f" (line {line})" if line and not isinstance(error, SyntaxError) else ""
    try:
        text = str(error)[:MAX_ERROR]
    except BaseException as second:  # an exception that cannot be printed
        text = f"<no text: {type(second).__name__}>"
    return (f"{name}: {text}" if text else name) + where
