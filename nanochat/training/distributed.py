"""Training on several ranks: who updates which weights, and what travels between ranks when.

All ranks hold all weights. Each piece of them, a matrix of a block or some rows of a table, has one
owner, which alone keeps its optimizer state. While the backward pass still runs, gradients travel
to their owners, who sum them in float32 in the order of the ranks; after the update, the new
weights travel to all. Within a node first, then between nodes, so that the slow links carry least.

This file alone knows of collectives; train.OneRank is its twin in one process.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import compress, pairwise, product
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from nanochat.adamw import NamedOptimizer
from nanochat.common import rank_and_world
from nanochat.train import OneRank
from nanochat.training.config import StageConfig
from nanochat.training.optimizers import optimizer_of


class Piece(NamedTuple):
    """Rows begin..end-1 of a parameter, which one rank updates."""

    name: str
    parameter: torch.nn.Parameter
    begin: int
    end: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Its part of the parameter itself, or of what has the parameter's shape."""
        return tensor.detach()[self.begin : self.end]


@dataclass
class Round:
    """Pieces that travel together, the i-th to or from the owner in place i. legs: (group, numbers
    exchanged with each of its ranks, numbers that are this rank's) within the node, then between
    nodes."""

    pieces: list[Piece]
    mine: Piece | None
    legs: list[tuple[dist.ProcessGroup, list[int], int]]
    missing: int = 0  # parameters whose gradient is not there yet

    def split(self, flat: torch.Tensor) -> Iterator[tuple[Piece, torch.Tensor]]:
        """The pieces with their parts of all pieces' numbers."""
        shapes = [p.of(p.parameter).shape for p in self.pieces]
        parts = flat.split([shape.numel() for shape in shapes])
        return zip(self.pieces, map(torch.Tensor.view, parts, shapes), strict=True)


def deal(named: dict[str, torch.nn.Parameter], ranks: int) -> dict[str, list[list[Piece]]]:
    """By optimizer, rounds of at most one piece a rank: tables by rows, matrices whole, like cards,
    those that are most work first, and of equal ones the last, whose gradients come first.

    Example: 5 equal matrices on 2 ranks: {"adamw": [], "muon": [[m4, m3], [m2, m1], [m0]]}.
    """
    rounds, whole = {"adamw": [], "muon": []}, []
    for name, p in reversed(named.items()):
        if optimizer_of(name) == "muon":
            whole.append(Piece(name, p, 0, len(p)))
        else:
            cuts = [len(p) * i // ranks for i in range(ranks + 1)]
            rounds["adamw"].append([Piece(name, p, *cut) for cut in pairwise(cuts)])
    whole.sort(key=lambda piece: -piece.parameter.numel() * min(piece.parameter.shape))
    rounds["muon"] = [whole[i : i + ranks] for i in range(0, len(whole), ranks)]
    return rounds


class Replicated:
    """See train.OneRank. owned: what this rank updates, by name, views of the weights; their .grad
    is the sum over all ranks when `gradients` has waited for it."""

    def __init__(self, model, config: StageConfig):
        self.device, self.dtype = model.device, getattr(torch, config.reduce_dtype)
        world, node = rank_and_world()[1], int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
        node = node if node and world % node == 0 else world
        mesh = init_device_mesh(self.device.type, (world // node, node))
        levels = [mesh.get_group(dim) for dim in (1, 0) if mesh.size(dim) > 1]
        self.rounds = {
            name: [self.plan(pieces, levels) for pieces in rounds]
            for name, rounds in deal(dict(model.named_parameters()), world).items()
        }
        self.every = [round for rounds in self.rounds.values() for round in rounds]
        self.owned = {r.mine.name: r.mine.of(r.mine.parameter) for r in self.every if r.mine}
        self.last, self.travelling = False, []
        for round in self.every:
            for p in {piece.parameter for piece in round.pieces}:
                p.register_post_accumulate_grad_hook(lambda p, round=round: self.arrived(round))

    def plan(self, pieces: list[Piece], levels: list[dist.ProcessGroup]) -> Round:
        sizes = [piece.of(piece.parameter).numel() for piece in pieces]
        place, legs = 0, []
        sizes += [0] * (rank_and_world()[1] - len(sizes))
        for group in levels:
            ranks, rank = dist.get_world_size(group), dist.get_rank(group)
            each = len(sizes) // ranks
            parts = [sum(sizes[i * each : (i + 1) * each]) for i in range(ranks)]
            legs.append((group, parts, parts[rank]))
            place, sizes = place + rank * each, sizes[rank * each : (rank + 1) * each]
        return Round(pieces, pieces[place] if place < len(pieces) else None, legs)

    # ------------------------------------------------------------ gradients to their owners

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Of a micro-batch; the last one of a step sends the gradients."""
        self.last = last
        for round in self.every:
            round.missing = len({piece.parameter for piece in round.pieces})
        loss.backward()

    def arrived(self, round: Round) -> None:
        round.missing -= 1
        if self.last and round.missing == 0:
            self.send(self.collect(round))

    def send(self, journey: Iterator) -> None:
        """Begins a journey, after those on their way have been moved on by a leg."""
        self.travelling = [j for j in (*self.travelling, journey) if next(j, "there") is None]

    def finish(self) -> None:
        while self.travelling:
            self.send(iter(()))

    def collect(self, round: Round) -> Iterator[None]:
        """Sums a round's gradients at their owners; yields while they travel."""
        flat = torch.cat([piece.of(piece.parameter.grad).flatten() for piece in round.pieces])
        for piece in round.pieces:
            piece.parameter.grad = None
        for group, parts, mine in round.legs:
            received = flat.new_empty(len(parts) * mine, dtype=self.dtype)
            counts = [mine] * len(parts), parts
            flat = flat.to(self.dtype)
            work = dist.all_to_all_single(received, flat, *counts, group=group, async_op=True)
            yield
            work.wait()
            flat = received.view(len(parts), mine).sum(0, dtype=torch.float32)
        if round.mine:
            own = self.owned[round.mine.name]
            own.grad = flat.view_as(own)

    def gradients(self) -> list[torch.Tensor]:
        """Of what this rank updates, over all ranks."""
        self.finish()
        return [tensor.grad for tensor in self.owned.values()]

    def norm(self, grads: list[torch.Tensor]) -> torch.Tensor:
        """Of all ranks' gradients, the same bits on each."""
        squares = torch.zeros(rank_and_world()[1], device=self.device)
        square = torch.nn.utils.get_total_norm(grads, foreach=True).to(squares).square()
        dist.all_gather(list(squares.split(1)), square.view(1))
        return squares.sum().sqrt()

    # ------------------------------------------------------------ weights, and state, to all

    def spread(self, round: Round, own: Callable[[str], torch.Tensor]) -> Iterator[None]:
        """Yields while it gives every rank all pieces' numbers, flat, of which own(name) are this
        rank's; returns them."""
        flat = own(round.mine.name).flatten() if round.mine else torch.empty(0, device=self.device)
        for group, parts, mine in reversed(round.legs):
            received = flat.new_empty(sum(parts))
            counts = parts, [mine] * len(parts)
            copies = flat.repeat(len(parts))
            work = dist.all_to_all_single(received, copies, *counts, group=group, async_op=True)
            yield
            work.wait()
            flat = received
        return flat

    def deliver(self, round: Round) -> Iterator[None]:
        """Copies every owner's new weights into this rank's."""
        for piece, values in round.split((yield from self.spread(round, self.owned.get))):
            piece.of(piece.parameter).copy_(values)

    def update(self, optimizers) -> None:
        """Steps; the tables travel while the matrices are orthogonalised."""
        for optimizer, rounds in zip(optimizers, self.rounds.values(), strict=True):
            optimizer.step()
            for round in rounds:
                self.send(self.deliver(round))
        self.finish()

    def whole_state(self, name: str, optimizer: NamedOptimizer) -> dict[str, torch.Tensor]:
        """The state of one of the optimizers, of all ranks, in main memory on rank 0."""
        own = optimizer.state_tensors()
        whole = {"num_steps": own["num_steps"]}

        def fetch(round: Round, key: str) -> Iterator[None]:
            flat = yield from self.spread(round, lambda name: own[f"{name}.{key}"])
            for piece, values in round.split(flat) if rank_and_world()[0] == 0 else ():
                empty = torch.empty(piece.parameter.shape)
                piece.of(whole.setdefault(f"{piece.name}.{key}", empty)).copy_(values)

        for round, key in product(self.rounds[name], optimizer.STATE):
            self.send(fetch(round, key))
        self.finish()
        return whole

    def own_state(self, name: str, whole: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What this rank keeps of a whole state: the inverse of whole_state."""
        pieces = {r.mine.name: r.mine for r in self.rounds[name] if r.mine}
        own = {key: (pieces.get(key.rpartition(".")[0]), tensor) for key, tensor in whole.items()}
        own = {key: piece.of(tensor) for key, (piece, tensor) in own.items() if piece}
        return own | {"num_steps": whole["num_steps"]}


def join(model, config: StageConfig) -> OneRank | Replicated:
    """How this rank takes part in training `model`."""
    return Replicated(model, config) if rank_and_world()[1] > 1 else OneRank(model)


def first_difference(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The first name whose tensor has other bits on another rank, by their sums; for 32-bit
    numbers."""
    if rank_and_world()[1] == 1:
        return None
    names, tensors = zip(*named, strict=True)
    sums = torch.stack([t.detach().view(torch.int32).sum(dtype=torch.int64) for t in tensors])
    every = sums.new_empty(rank_and_world()[1], len(names))
    dist.all_gather(list(every), sums)
    differs = (every != sums).any(dim=0).tolist()
    return next(compress(names, differs), None)
