"""Stopping when asked to, with everything saved, or at once when another rank is dead."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nanochat.common import rank_and_world

# torchrun also asks all ranks to stop when one has died. A slow step must not be taken
# for that. The recipes give torchrun 300 s.
SECONDS_TO_STOP = 240


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields asked(): whether SIGTERM or Ctrl-C came; a second one ends the program at once. Where
    no step ends within SECONDS_TO_STOP, because another rank is dead or hangs, so does this one."""
    received: list[int] = []
    previous, left = {}, threading.Event()
    arrival, wakeup = socket.socketpair()
    wakeup.setblocking(False)

    def watch() -> None:  # in a thread, because the main one may wait for a dead rank in C code
        if arrival.recv(1) and not left.wait(SECONDS_TO_STOP):
            print(f"no step ended in {SECONDS_TO_STOP} s: a rank is dead, or hangs", flush=True)
            os._exit(1)

    def handle(number, frame):
        received.append(number)
        print(f"\n{signal.Signals(number).name}: saving after this step", flush=True)
        for name, handler in previous.items():
            signal.signal(name, handler)

    for name in (signal.SIGTERM, signal.SIGINT):
        previous[name] = signal.signal(name, handle)
    signal.set_wakeup_fd(wakeup.fileno())
    if rank_and_world()[1] > 1:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield lambda: bool(received)
    finally:
        left.set()
        signal.set_wakeup_fd(-1)
        for name, handler in previous.items():
            signal.signal(name, handler)
