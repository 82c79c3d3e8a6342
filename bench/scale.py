"""Ranks on one machine: are losses equal, how many bytes travel, who does how much of the update?

    python -m bench.scale
    python -m bench.scale --ranks 1 2 4 --depth 4 --shard

Each number of ranks trains the same rows for the same steps, over gloo, on the CPU. The bytes are
those that the kernel counted on the processes' TCP sockets, beside those of report/planning.py.
Prints a table; writes bench/results/scale-<machine>.json.
"""

import os
import socket
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table

from bench.record import write_record
from nanochat.common import compute_cleanup, compute_init, rank_and_world
from nanochat.configurator import cli
from nanochat.dataloader import Batch
from nanochat.gpt import GPT, GPTConfig
from nanochat.loss import LossFn
from nanochat.report.planning import Setting, traffic
from nanochat.train import LoopState, train
from nanochat.training.config import StageConfig
from nanochat.training.distributed import join, shard
from nanochat.training.optimizers import build_optimizers, make_schedule

BYTES_ACKED = 120  # where struct tcp_info (linux/tcp.h) has the bytes that the other side received


@dataclass(frozen=True)
class Config:
    ranks: tuple[int, ...] = (1, 2, 4)
    """Numbers of processes, one line of the table each."""
    depth: int = 4
    """Layers, of width 64 x depth."""
    vocab_size: int = 4096
    """Rows of embedding and head."""
    sequence_len: int = 128
    """Tokens of a row."""
    rows_per_step: int = 16
    """Over all ranks."""
    micro_batches: int = 2
    """Of each rank in a step."""
    steps: int = 4
    """That are trained; the last half is counted."""
    shard: bool = False
    """As in training."""
    shard_group: int = 0
    """As in training."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """As in training."""


def bytes_sent() -> int:
    """Bytes that this process's open TCP connections have brought to the other side."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=int(name))
        except OSError:  # no socket
            continue
        try:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            total += struct.unpack_from("Q", info, BYTES_ACKED)[0]
        except OSError:  # none of TCP
            pass
        finally:
            connection.detach()  # it is another's: not to be closed
    return total


def measure(config: Config) -> dict:
    """On each rank: the losses, bytes that it sent in a step, its share of the update."""
    shape = GPTConfig.from_depth(
        config.depth, config.vocab_size, head_dim=64, sequence_len=config.sequence_len
    )
    settings = StageConfig(
        shard=config.shard, shard_group=config.shard_group, reduce_dtype=config.reduce_dtype
    )
    model = GPT(shape)
    if rank_and_world()[1] > 1:
        shard(model, settings, torch.device("cpu"), compiled=False)
    ranks = join(model, settings)
    owned = {name: tensor.shape for name, tensor in ranks.owned.items() if ".layers." in name}
    optimizers = list(build_optimizers(model, settings, ranks.owned).values())
    losses, counted = [], []

    def log(state, metrics) -> None:
        losses.append(metrics["loss"])

    def steps():
        for _ in range(config.steps):
            counted.append(bytes_sent())
            yield micro_batches(config)

    state = LoopState(num_steps=config.steps)
    train(
        model, optimizers, steps(), loss_fn=LossFn(model, compiled=False), state=state,
        schedule=make_schedule(settings), log=log, ranks=ranks,
    )  # fmt: skip
    if rank_and_world()[1] > 1:
        dist.barrier()
    half = config.steps // 2
    work = sum(rows * columns * min(rows, columns) for rows, columns in owned.values())
    sent = (counted[-1] - counted[half]) / (config.steps - 1 - half)
    return {"losses": losses, "sent": sent, "work": work}


def micro_batches(config: Config) -> list[Batch]:
    rank, world = rank_and_world()
    size = config.rows_per_step, config.sequence_len + 1
    ids = torch.randint(0, config.vocab_size, size, generator=torch.Generator().manual_seed(1))
    mine = ids.chunk(world)[rank].chunk(config.micro_batches)
    return [Batch(part[:, :-1], part[:, 1:]) for part in mine]


def rank_main(rank: int, world: int, port: int, config: Config, folder: str) -> None:
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(number) for name, number in places.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    compute_init("cpu")
    torch.save(measure(config), Path(folder) / f"{rank}.pt")
    compute_cleanup()


def start(world: int, config: Config) -> list[dict]:
    """What each rank measured."""
    with tempfile.TemporaryDirectory() as folder:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        mp.spawn(rank_main, args=(world, store.port, config, folder), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]


def planned_bytes(config: Config, world: int) -> float:
    """Bytes that a rank sends in a step, by the planner."""
    group = config.shard_group or world
    shape = GPTConfig.from_depth(
        config.depth, config.vocab_size, head_dim=64, sequence_len=config.sequence_len
    )
    setting = Setting(
        shape,
        gpus=world,
        group=group,
        shard=config.shard,
        tokens_per_step=config.rows_per_step * config.sequence_len,
        rows=config.rows_per_step // world // config.micro_batches,
        itemsize=4,
        reduce_itemsize=getattr(torch, config.reduce_dtype).itemsize,
    )
    moved = traffic(setting)
    # gloo reduces and scatters by reducing for all, which sends twice as much as NCCL
    return sum(moved.values()) + moved["reduce"] * (config.reduce_dtype == "float32")


def main(config: Config) -> None:
    lines, table = [], Table(title="training on several ranks of one machine")
    for name in ("ranks", "last loss", "MB a rank and step", "planned", "work of an update"):
        table.add_column(name, justify="right")
    for world in config.ranks:
        found = start(world, config)
        works = [rank["work"] for rank in found]
        line = {
            "ranks": world,
            "losses": found[0]["losses"],
            "bytes_of_a_rank_and_step": sum(rank["sent"] for rank in found) / world,
            "planned_bytes": planned_bytes(config, world),
            "most_work_of_a_rank": max(works) / sum(works),
        }
        lines.append(line)
        table.add_row(
            str(world), f"{line['losses'][-1]:.6f}",
            f"{line['bytes_of_a_rank_and_step'] / 1e6:.3f}",
            f"{line['planned_bytes'] / 1e6:.3f}", f"{line['most_work_of_a_rank']:.1%}",
        )  # fmt: skip
    Console().print(table)
    write_record("scale", config, "cpu", {"results": lines})


if __name__ == "__main__":
    cli(main, Config)
