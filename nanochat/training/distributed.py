"""Training on several ranks: who holds and updates which weights, and what travels when.

PyTorch's FSDP2 splits every weight by rows over the ranks of a group, such as a node. They put a
block together before its forward pass, in compute dtype, and sum its gradients in float32 while the
backward pass goes on, in its last micro-batch. With --shard, for models that do not fit one device,
a block is put together for each use anew, and its gradients are summed in each micro-batch.

AdamW updates the rows that a rank has. Muon needs whole matrices: each is sent to an owner, which
keeps its momentum and sends the new rows back, so that ranks share the work. Several groups hold
the same weights: gradients are also summed over groups, and each group updates for itself.

This file alone knows of collectives; train.OneRank is its twin in one process.
"""

import os
from itertools import compress, product
from math import prod

import torch
import torch.distributed as dist

from nanochat.common import ConfigError, choose_dtype, rank_and_world
from nanochat.train import OneRank
from nanochat.training.config import StageConfig
from nanochat.training.optimizers import optimizer_of

Tensors = dict[str, torch.Tensor]
Named = tuple[str, torch.nn.Parameter]


def shard(model, config: StageConfig, device: torch.device, compiled: bool) -> float:
    """Splits a model over the ranks, on the device, compiled by block or not; returns the share of
    it that a rank holds at most times."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    world = rank_and_world()[1]
    ranks = config.shard_group or int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world % ranks:
        raise ConfigError(f"{world} ranks are no multiple of the {ranks} of a node, or shard group")
    shape, names = (world // ranks, ranks), ("copies", "rows")
    one = slice(world == ranks, None)
    mesh = init_device_mesh(device.type, shape[one], mesh_dim_names=names[one])
    model.compute_dtype = choose_dtype(device)[0]
    for block in model.model.layers if compiled else ():
        block.compile(dynamic=False)
    # subtle: inputs are not cast, because rotary tables stay float32
    policy = MixedPrecisionPolicy(model.compute_dtype, torch.float32, cast_forward_inputs=False)
    tables = (model.model.embed_tokens, model.lm_head)
    for unit in (*model.model.layers, *(() if model.config.tie_word_embeddings else tables), model):
        # subtle: the head is kept whole, because evaluation uses it more often on some ranks
        split_again = config.shard and unit not in (model.lm_head, model)
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=split_again)
        unit.set_gradient_divide_factor(1.0)  # the loss is divided by the number of targets
        unit.set_force_sum_reduction_for_comms(True)  # gloo cannot divide
    register_fsdp_forward_method(model, "features")
    register_fsdp_forward_method(model.lm_head, "use_in")
    return 1 / ranks if config.shard else 1.0


def deal(named: list[Named], ranks: int) -> list[list[Named]]:
    """Rounds of matrices, the i-th of a round for rank i: like cards, most work first.

    Example: 5 equal matrices on 2 ranks: [[m0, m1], [m2, m3], [m4]].
    """
    work = lambda p: prod(p.shape) * min(p.shape)  # noqa: E731  of orthogonalising
    dealt = sorted(named, key=lambda item: work(item[1]), reverse=True)
    return [dealt[i : i + ranks] for i in range(0, len(dealt), ranks)]


def rows_of_ranks(rows: int, ranks: int) -> list[int]:
    """As FSDP2 deals them. Example: rows_of_ranks(7, 4) == [2, 2, 2, 1]."""
    each = -(-rows // ranks)
    return [min(each, max(0, rows - i * each)) for i in range(ranks)]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows."""
    return tensor.detach().to_local()


class ManyRanks(OneRank):
    """Of a model that `shard` has prepared. owned: this rank's rows of embedding and head, and its
    matrices, which are whole, and there at all, only during the update."""

    def __init__(self, model, config: StageConfig):
        mesh = model.lm_head.weight.device_mesh
        self.group = mesh.get_group(mesh.ndim - 1)
        self.copies = mesh.get_group(0) if mesh.ndim == 2 else None
        self.rank, self.ranks = self.group.rank(), self.group.size()
        self.model, self.sync_always = model, config.shard
        self.named, self.empty = dict(model.named_parameters()), torch.empty(0, device=model.device)
        muon = [item for item in self.named.items() if optimizer_of(item[0]) == "muon"]
        self.rounds = deal(muon, self.ranks)
        self.tables = {n: local(p) for n, p in self.named.items() if optimizer_of(n) == "adamw"}
        mine = [round[self.rank] for round in self.rounds if self.owns(round)]
        self.owned = self.tables | {name: self.empty.new_empty(p.shape) for name, p in mine}

    def exchange(self, flat: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
        """Each rank of the group sends each other so many of its numbers; what came, by rank."""
        result = flat.new_empty(sum(received))
        dist.all_to_all_single(result, flat, received, sent, group=self.group)
        return result

    # ------------------------------------------------------------ a step

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.model.set_requires_gradient_sync(last or self.sync_always)
        self.model.set_reshard_after_backward(last or self.sync_always)
        loss.backward()

    def gradients(self) -> list[torch.Tensor]:
        return [local(p.grad) for p in self.named.values()]

    def norm(self, grads: list[torch.Tensor]) -> torch.Tensor:
        squares = self.empty.new_zeros(self.ranks)
        square = torch.nn.utils.get_total_norm(grads, foreach=True).square()
        dist.all_gather(list(squares.split(1)), square.view(1), group=self.group)
        return squares.sum().sqrt()  # the same bits on all ranks

    @torch.no_grad()
    def update(self, optimizers) -> None:
        adamw, muon = optimizers
        for name, rows in self.tables.items():
            rows.grad = local(self.named[name].grad)
        adamw.step()
        for round in self.rounds:
            self.assemble(round)
        muon.step()
        for round in self.rounds:
            self.deliver(round)

    def row_counts(self, p: torch.Tensor) -> list[int]:
        return [p.shape[1] * rows for rows in rows_of_ranks(len(p), self.ranks)]

    def counts(self, round: list[Named]) -> tuple[list[int], list[int]]:
        """(this rank's numbers of each owner's matrix, each rank's numbers of this one's)"""
        nothing = [0] * self.ranks
        of_owners = [self.row_counts(p)[self.rank] for _, p in round] + nothing[len(round) :]
        return of_owners, self.row_counts(round[self.rank][1]) if self.owns(round) else nothing

    def owns(self, round: list[Named]) -> bool:
        return self.rank < len(round)

    def assemble(self, round: list[Named]) -> None:
        """Puts the matrices of a round, and their gradients, together at their owners."""
        wholes = []
        for tensors in ([p for _, p in round], [p.grad for _, p in round]):
            flat = torch.cat([local(tensor).flatten() for tensor in tensors])
            wholes.append(self.exchange(flat, *self.counts(round)))
        if self.owns(round):
            name, p = round[self.rank]
            own = self.owned[name]
            own.data, own.grad = (whole.view(p.shape) for whole in wholes)

    def deliver(self, round: list[Named]) -> None:
        """Sends every rank its rows of the new matrices, which are freed."""
        flat, (of_owners, of_ranks) = self.empty, self.counts(round)
        if self.owns(round):
            own = self.owned[round[self.rank][0]]
            flat, own.grad, own.data = own.flatten(), None, self.empty
        parts = self.exchange(flat, of_ranks, of_owners).split(of_owners)
        for (_, p), part in zip(round, parts, strict=False):
            local(p).copy_(part.view(-1, p.shape[1]))

    # ------------------------------------------------------------ what is saved and resumed

    def to_first(self, mine: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """All ranks' numbers, so many of each, in main memory of the group's first."""
        nothing = [0] * self.ranks
        sent, received = [mine.numel(), *nothing[1:]], nothing if self.rank else counts
        return self.exchange(mine.flatten(), sent, received).cpu()

    def weights(self, model) -> Tensors:
        flat = {name: self.to_first(local(p), self.row_counts(p)) for name, p in self.named.items()}
        return (
            {} if self.rank else {name: flat[name].view(p.shape) for name, p in self.named.items()}
        )

    def whole_state(self, name: str, optimizer) -> Tensors:
        own = optimizer.state_tensors()
        whole = {"num_steps": own["num_steps"]}
        parts = [(round, [p.numel() for _, p in round]) for round in self.rounds]
        if name == "adamw":
            parts = [([(n, self.named[n])], self.row_counts(self.named[n])) for n in self.tables]
        for (items, counts), key in product(parts, optimizer.STATE):
            keys = [f"{n}.{key}" for n, _ in items]
            mine = next((own[k] for k in keys if k in own), self.empty)
            flat = self.to_first(mine, counts + [0] * (self.ranks - len(counts)))
            split = flat.split([p.numel() for _, p in items]) if not self.rank else ()
            whole |= {k: t.view(p.shape) for k, t, (_, p) in zip(keys, split, items, strict=False)}
        return whole

    def own_state(self, name: str, whole: Tensors) -> Tensors:
        own = {"num_steps": whole["num_steps"]}
        for key, tensor in whole.items():
            if (n := key.rpartition(".")[0]) in self.tables:
                first = sum(rows_of_ranks(len(tensor), self.ranks)[: self.rank])
                own[key] = tensor[first : first + len(self.tables[n])]
            elif n in self.owned:
                own[key] = tensor
        return own

    def first_difference(self, model) -> str | None:
        if self.copies is None:
            return None
        tensors = [local(p).view(torch.int32) for p in self.named.values()]
        sums = torch.stack([tensor.sum(dtype=torch.int64) for tensor in tensors])
        every = sums.new_empty(self.copies.size(), len(sums))
        dist.all_gather(list(every), sums, group=self.copies)
        differs = (every != sums).any(dim=0).int()
        dist.all_reduce(differs)
        return next(compress(self.named, differs.tolist()), None)


def join(model, config: StageConfig) -> OneRank:
    """How this rank takes part in training `model`."""
    return ManyRanks(model, config) if rank_and_world()[1] > 1 else OneRank(model)
