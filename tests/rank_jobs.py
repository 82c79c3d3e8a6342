"""Jobs for several ranks, in processes that all tests share: starting them takes most of the time.

A job is (function, number of ranks, ranks a node, arguments); function(**arguments) runs on each of
its ranks as under torchrun, and what it returns on rank r is results[job][r].
"""

import os
import queue
import socket
import traceback
from contextlib import suppress
from pathlib import Path

import torch
from forked import CONTEXT, start

from nanochat.common import compute_cleanup, compute_init

PROCESSES = 4


def free_ports(number: int) -> list[int]:
    """Ports that nothing listens at, below those that a system gives out, so that none is taken
    by chance before rank 0 listens there; for each process of tests others."""
    found = []
    for port in range(20_000 + os.getpid() * 50 % 10_000, 32_000):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == number:
            break
    return found


class RankProcesses:
    def __init__(self):
        self.queues, self.ended = [CONTEXT.SimpleQueue() for _ in range(PROCESSES)], CONTEXT.Queue()
        self.processes = [
            start(serve, rank, mine, self.ended) for rank, mine in enumerate(self.queues)
        ]

    def run(self, jobs: dict[str, tuple], folder: Path) -> dict[str, list]:
        ports = free_ports(len(jobs))
        for mine in self.queues:
            mine.put((jobs, ports, str(folder)))
        for _ in self.queues:
            if failure := self.next_end():
                self.close()
                raise AssertionError(failure)
        return {
            name: [torch.load(folder / f"{name}-{r}.pt", weights_only=False) for r in range(job[1])]
            for name, job in jobs.items()
        }

    def next_end(self) -> str:
        while True:
            try:
                return self.ended.get(timeout=5)
            except queue.Empty:
                if not all(process.is_alive() for process in self.processes):
                    return "a rank's process died"

    def close(self) -> None:
        for process in self.processes:
            process.kill()


def serve(rank: int, jobs, ended) -> None:
    torch.set_num_threads(1)
    environment = dict(os.environ)
    while True:
        try:
            work(rank, *jobs.get())
            ended.put("")
        except BaseException:
            ended.put(f"rank {rank}\n{traceback.format_exc()}")
            raise
        os.environ.clear()
        os.environ.update(environment)


def work(rank: int, jobs: dict[str, tuple], ports: list[int], folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "NANOCHAT_BASE_DIR": folder}
    os.environ["NANOCHAT_DTYPE"] = "float32"
    for (name, (function, world, node, arguments)), port in zip(jobs.items(), ports, strict=True):
        if rank < world:
            local = {"LOCAL_RANK": rank % node, "LOCAL_WORLD_SIZE": node}
            places = {"RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port, **local}
            os.environ |= {key: str(value) for key, value in places.items()}
            torch.manual_seed(0)
            compute_init("cpu")
            result = function(**arguments)
            compute_cleanup()
            torch.save(result, Path(folder) / f"{name}-{rank}.pt")
