"""Training on several ranks: who holds and updates which weights, and what travels when.

PyTorch's FSDP2 splits every weight by rows over the ranks of a group: all, or with --shard those of
a node. They put a block together before its forward pass, in compute dtype, and sum its gradients
in float32 while the backward pass goes on, in its last micro-batch. With --shard, for models that
do not fit one device, a block is put together for each use anew, and its gradients are summed in
each micro-batch.

AdamW updates the rows that a rank has. Muon needs whole gradients: a matrix's is sent to its owner,
which keeps the momentum and sends every rank the direction in which to move its rows. Several
groups hold the same weights: gradients are also summed over groups, and each updates for itself.

train.OneRank is the twin in one process.
"""

import os
from collections.abc import Callable
from itertools import compress, product
from math import prod

import torch
import torch.distributed as dist

from nanochat.common import ConfigError, choose_dtype, on_rank0, rank_and_world
from nanochat.gpt import GPT
from nanochat.muon import descend
from nanochat.train import OneRank
from nanochat.training.config import StageConfig
from nanochat.training.optimizers import optimizer_of

Tensors = dict[str, torch.Tensor]
Named = tuple[str, torch.nn.Parameter]


def shard(model, config: StageConfig, device: torch.device, compiled: bool) -> float:
    """Splits a model over the ranks, on the device, compiled by block or not; returns the share of
    it that a rank holds at most times. The weights are those of rank 0, which alone has to have
    them: elsewhere memory is reserved and never written."""
    from torch.distributed import fsdp, init_device_mesh

    world = rank_and_world()[1]
    node = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    ranks = config.shard_group or (node if config.shard else world)
    node = min(node, ranks)
    if world % ranks or ranks % node:
        raise ConfigError(
            f"--shard-group {ranks}: {world} ranks, {node} on a node, are not divided evenly by it"
        )
    shape = (ranks,) if ranks == world else (world // ranks, ranks)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("copies", "rows")[-len(shape) :])
    # subtle: detached, because FSDP2 moves the parameters themselves to the device
    wholes = [p.detach() for p in model.parameters()]
    model.compute_dtype = choose_dtype(device)[0]
    for block in model.model.layers if compiled else ():
        block.compile(dynamic=False)
    dtypes = model.compute_dtype, torch.float32  # of weights, of summed gradients
    # subtle: inputs are not cast, because rotary tables stay float32
    policy = fsdp.MixedPrecisionPolicy(*dtypes, cast_forward_inputs=False)
    tables = (model.model.embed_tokens, model.lm_head)
    units = *model.model.layers, *(() if model.config.tie_word_embeddings else tables), model
    for unit in units:
        split_again = config.shard and unit is not model
        fsdp.fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=split_again)
        # subtle: tables, whose gradients do not need them, are not put together for these
        unit.set_unshard_in_backward(unit not in tables)
        unit.set_gradient_divide_factor(1.0)  # the loss is divided by the number of targets
        unit.set_force_sum_reduction_for_comms(True)  # gloo cannot divide
    if config.reduce_dtype == "bfloat16":
        reduce = ReduceIn16Bits(device, world, ranks, node)
        for unit in units:
            unit.set_custom_reduce_scatter(reduce)
    fsdp.register_fsdp_forward_method(model, "features")
    fsdp.register_fsdp_forward_method(model.lm_head, "use_in")
    rank = mesh.get_local_rank(mesh.ndim - 1)
    for whole, p in zip(wholes, model.parameters(), strict=True):
        whole = broadcast(whole, whole.shape, whole.dtype, device)
        local(p).copy_(whole.split(rows_of_ranks(len(p), ranks))[rank])
    return 1 / ranks if config.shard else 1.0


def read_on_rank0(read: Callable[[], GPT], like: GPT) -> GPT:
    """The model that read() gives on rank 0, whole on every rank; of the shape of `like`."""
    found = []
    on_rank0(lambda: found.append(read()))
    model = found[0] if found else GPT.from_weights(like.config, None).to(like.device)
    model.compute_dtype = like.compute_dtype
    if rank_and_world()[1] > 1:
        for p in model.parameters():
            dist.broadcast(p.detach(), src=0)
    return model


class ReduceIn16Bits:
    """FSDP2's reduce-scatter with half the bytes: gradients travel in bfloat16, within nodes and
    then between them, and are summed in float32."""

    def __init__(self, device: torch.device, world: int, ranks: int, node: int):
        from torch.distributed import init_device_mesh

        names, shape = ("copies", "nodes", "node"), (world // ranks, ranks // node, node)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
        self.levels = [mesh.get_group(name) for name in ("node", "nodes")]
        self.shape = shape[1:]

    def allocate(self, size, *, dtype, device):
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(self, output_tensor, input_tensor, group, op, async_op=False) -> None:
        parts = input_tensor.view(*self.shape, -1).transpose(0, 1)  # (node, nodes, numbers)
        for peers in self.levels:
            if peers.size() > 1:
                sent = parts.bfloat16().contiguous()
                parts = torch.empty_like(sent)
                dist.all_to_all_single(parts, sent, group=peers)
            parts = parts.sum(0, dtype=torch.float32)
        output_tensor.copy_(parts)


def deal(named: list[Named], ranks: int) -> list[list[Named]]:
    """Rounds of matrices, the i-th of a round for rank i: like cards, those first whose
    orthogonalisation is most work. Example: 5 equal ones, 2 ranks: [[m0, m1], [m2, m3], [m4]]."""
    dealt = sorted(named, key=lambda item: -prod(item[1].shape) * min(item[1].shape))
    return [dealt[i : i + ranks] for i in range(0, len(dealt), ranks)]


def rows_of_ranks(rows: int, ranks: int) -> list[int]:
    """As FSDP2 deals them. Example: rows_of_ranks(7, 4) == [2, 2, 2, 1]."""
    each = -(-rows // ranks)
    return [min(each, max(0, rows - i * each)) for i in range(ranks)]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows."""
    return tensor.detach().to_local()


def broadcast(tensor: torch.Tensor | None, shape, dtype, device, source=0, group=None):
    """The tensor of the group's rank `source`, on every rank's device."""
    mine = dist.get_rank(group) == source
    tensor = tensor.to(device) if mine else torch.empty(shape, dtype=dtype, device=device)
    dist.broadcast(tensor, group_src=source, group=group)
    return tensor


class ManyRanks(OneRank):
    """Of a model that `shard` has prepared, before it is used. owned: this rank's rows of embedding
    and head, and in the place of its matrices their shapes alone."""

    def __init__(self, model, config: StageConfig):
        mesh = model.lm_head.weight.device_mesh
        self.group = mesh.get_group(mesh.ndim - 1)
        self.copies = mesh.get_group(0) if mesh.ndim == 2 else None
        self.rank, self.ranks = self.group.rank(), self.group.size()
        self.model, self.sync_always = model, config.shard
        self.sent_dtype = getattr(torch, config.reduce_dtype)
        # what the next forward pass begins with; a tied embedding is the root's
        self.first = model if model.config.tie_word_embeddings else model.model.embed_tokens
        self.named, self.empty = dict(model.named_parameters()), torch.empty(0, device=model.device)
        muon = [item for item in self.named.items() if optimizer_of(item[0]) == "muon"]
        self.rounds = deal(muon, self.ranks)
        self.tables = {n: local(p) for n, p in self.named.items() if optimizer_of(n) == "adamw"}
        mine = (item for round in self.rounds for item in self.own(round))
        self.owned = self.tables | {n: self.empty.new_empty(1).expand(p.shape) for n, p in mine}

    def own(self, round: list[Named]) -> list[Named]:
        """The matrix of a round that this rank owns, if any."""
        return round[self.rank : self.rank + 1]

    def exchange(self, round: list[Named], flat: torch.Tensor, back=False) -> tuple:
        """Sends all rows of a round of matrices to their owners, or back; what came, by rank."""
        sizes = [[n * p.shape[1] for n in rows_of_ranks(len(p), self.ranks)] for _, p in round]
        sizes += [[0] * self.ranks] * (self.ranks - len(round))  # they own none
        received, sent = sizes[self.rank], [of_ranks[self.rank] for of_ranks in sizes]
        if back:
            received, sent = sent, received
        result = flat.new_empty(sum(received))
        dist.all_to_all_single(result, flat, received, sent, group=self.group)
        return result.split(received)

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
            flat = torch.cat([local(p.grad).flatten() for _, p in round]).to(self.sent_dtype)
            parts = self.exchange(round, flat)
            for name, p in self.own(round):
                self.owned[name].grad = torch.cat(parts).float().view(p.shape)
        for p in (*self.named.values(), *self.tables.values()):
            p.grad = None
        self.first.unshard(async_op=True)  # travels while Muon computes
        directions = {}
        for _, params, found in muon.directions():
            directions |= zip(params, found.to(muon.dtype), strict=True)
        for round in self.rounds:
            flat = self.empty.to(muon.dtype)
            for name, _ in self.own(round):
                flat = directions[self.owned[name]].flatten()
            for (_, p), part in zip(round, self.exchange(round, flat, back=True), strict=False):
                descend([local(p)], [part.view(-1, p.shape[1])], muon.param_groups[0])

    # To save and resume, every rank gets a tensor whole, one at a time; the first of its group
    # keeps it.

    def weights(self, model) -> Tensors:
        wholes = ((name, p.detach().full_tensor()) for name, p in self.named.items())
        return {name: whole.cpu() for name, whole in wholes if not self.rank}

    def whole_state(self, name: str, optimizer) -> Tensors:
        from torch.distributed.tensor import DTensor

        own = optimizer.state_tensors()
        wholes = {"num_steps": own["num_steps"]}
        owners = {n: rank for round in self.rounds for rank, (n, _) in enumerate(round)}
        for n, key in product(owners if name == "muon" else self.tables, optimizer.STATE):
            p, mine = self.named[n], own.get(f"{n}.{key}")
            if n in owners:
                whole = broadcast(mine, p.shape, p.dtype, p.device, owners[n], self.group)
            else:
                rows = DTensor.from_local(
                    mine, p.device_mesh, p.placements, shape=p.shape, stride=p.stride()
                )
                whole = rows.full_tensor()
            if not self.rank:
                wholes[f"{n}.{key}"] = whole.cpu()
        return wholes

    def own_state(self, name: str, whole: Tensors) -> Tensors:
        own, device = {}, self.empty.device
        kinds = on_rank0(lambda: {key: (t.shape, t.dtype) for key, t in whole.items()})
        for key, kind in kinds.items():
            tensor, n = broadcast(whole.get(key), *kind, device), key.rpartition(".")[0]
            if n in self.tables:
                tensor = tensor.split(rows_of_ranks(len(tensor), self.ranks))[self.rank]
            if n in self.owned or not n:
                own[key] = tensor
        return own

    def first_difference(self, model) -> str | None:
        if self.copies is None:
            return None
        bits = (local(p).view(torch.int32) for p in self.named.values())
        sums = torch.stack([numbers.sum(dtype=torch.int64) for numbers in bits])
        every = sums.new_empty(self.copies.size(), len(sums))
        dist.all_gather(list(every), sums, group=self.copies)
        differs = (every != sums).any(dim=0).int()
        dist.all_reduce(differs)
        return next(compress(self.named, differs.tolist()), None)


def join(model, config: StageConfig) -> OneRank:
    """How this rank takes part in training `model`."""
    return ManyRanks(model, config) if rank_and_world()[1] > 1 else OneRank(model)
