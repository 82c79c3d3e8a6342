"""Stopping when asked to, with everything saved, or at once when another rank is dead."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

from nanochat.common import barrier, rank_and_world

BEAT_SECONDS, MISSED_BEATS = 5, 8


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields asked(): whether SIGTERM or Ctrl-C came; a second one ends the program at once."""
    received, previous = [], {}

    def restore() -> None:
        for name, handler in previous.items():
            signal.signal(name, handler)

    def handle(number, frame):
        received.append(number)
        restore()
        with suppress(OSError):  # subtle: print would fail if a print was interrupted
            os.write(1, f"\n{signal.Signals(number).name}: saving after this step\n".encode())

    for name in (signal.SIGTERM, signal.SIGINT):
        previous[name] = signal.signal(name, handle)
    try:
        with heartbeat():
            yield lambda: bool(received)
    finally:
        restore()


@contextmanager
def heartbeat() -> Iterator[None]:
    """Ends this process when another rank is not heard of for MISSED_BEATS: it is dead or stopped,
    or its machine gone. Threads beat and listen, so that steps and saves may take any time, and
    the main thread may wait for the dead rank in C code."""
    rank, world = rank_and_world()
    if world == 1:
        yield
        return
    # subtle: a connection of its own, because others wait on theirs
    store = dist.PrefixStore("heartbeat", dist.distributed_c10d._get_default_store().clone())
    names, left = [str(r) for r in range(world)], threading.Event()

    def beat() -> None:
        beats = 0
        while not left.wait(BEAT_SECONDS):
            try:
                heard = [(n, r) for r, n in enumerate(store.multi_get(names)) if n != b"left"]
                # subtle: beats are counted, not seconds, which go on while all are suspended
                oldest, silent = min((int(n), r) for n, r in heard)
                beats = max(beats + 1, *(int(n) for n, _ in heard))
                store.set(names[rank], str(beats))
            except dist.DistError:
                oldest, silent = -MISSED_BEATS, 0  # its machine has the store
            if beats - oldest >= MISSED_BEATS:
                seconds = MISSED_BEATS * BEAT_SECONDS
                print(f"rank {rank} ends: rank {silent} is silent for {seconds} s", flush=True)
                os._exit(1)

    store.set(names[rank], "0")
    barrier()  # each name has a value
    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        left.set()
        store.set(names[rank], "left")
