"""Jobs for several ranks, all in one start of the processes.

A job is (function, number of ranks, ranks a node, arguments); function(**arguments) runs on each of
its ranks as under torchrun, and what it returns on rank r is results[job][r].
"""

import os
import socket
from pathlib import Path

import torch
from forked import run_ranks

from nanochat.common import compute_cleanup, compute_init


def run_jobs(jobs: dict[str, tuple], folder: Path, processes: int = 4) -> dict[str, list]:
    ports = []
    sockets = [socket.socket() for _ in jobs]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
        ports.append(free.getsockname()[1])
    for free in sockets:
        free.close()
    run_ranks(work, processes, jobs, ports, str(folder))
    return {
        name: [
            torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(job[1])
        ]
        for name, job in jobs.items()
    }


def work(rank: int, jobs: dict[str, tuple], ports: list[int], folder: str) -> None:
    torch.set_num_threads(1)
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
