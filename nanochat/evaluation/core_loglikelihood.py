"""What a model thinks of rows of token ids.

What the rows of an example have in common before the first scored token is read once. Then the
rest of all its rows is read as one sequence whose tokens see that beginning and their own row. The
head is applied only where a token is scored. Dimensions: B examples, P tokens of a beginning, Q
tokens of the rests, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from nanochat.evaluation.core_prompts import Example, Row, common_prefix
from nanochat.evaluation.hf_baseline import TransformersModel
from nanochat.inference.fused_model import FusedModel
from nanochat.inference.kv_cache import as_bias, round_up

LENGTH_MULTIPLE = 32  # lengths are padded to multiples of this, so that few different shapes occur
HEAD_MULTIPLE = 128  # and the head's rows to multiples of this
TOKENS_AT_ONCE_ON_CPU = 4096  # more leave the processor's caches: measured, see dev/LOG.md
LOGITS_AT_ONCE = 2**25  # float32 numbers: 128 MiB


class Score(NamedTuple):
    """Of a row's scored tokens: their mean loss in nats, and whether each is the likeliest one."""

    loss: float
    is_greedy: bool


class PaddedRows:
    """B rows of T tokens as one pass of the fused model (generation has AttentionBatch).

    positions (B, T). Attention is causal, and keys and values are kept. With `before`, a pass that
    has ended, each row continues the same row of that one, and mask (B, 1, T, P + T) says what a
    token sees.
    """

    def __init__(self, positions: torch.Tensor, before=None, mask=None):
        self.shape = positions.shape
        self.positions = positions.flatten()
        self.before, self.mask = before, mask
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q (B T, H, K), k and v (B T, Hkv, K) -> (B T, H K)."""
        q, k, v = (t.unflatten(0, self.shape).transpose(1, 2) for t in (q, k, v))  # (B, H, T, K)
        if self.before is None:
            self.kept.append((k, v))
        else:
            old_k, old_v = self.before.kept[layer]
            k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
        causal, grouped = self.mask is None, k.shape[1] != q.shape[1]
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.mask, is_causal=causal, enable_gqa=grouped
        )
        return y.transpose(1, 2).flatten(2).flatten(0, 1)


class Job(NamedTuple):
    """Rows to be read together: `shared` ids of their beginning once, `rest` ids in all."""

    places: list[tuple[int, int]]  # (example, row) of each
    rows: Sequence[Row]
    shared: int
    rest: int


@torch.inference_mode()
def score(
    model: FusedModel | TransformersModel, examples: Sequence[Example], tokens_at_once: int
) -> list[list[Score]]:
    """The Score of every row of every example, about `tokens_at_once` tokens at a time, on a CPU
    fewer. A TransformersModel reads each row whole, in a job of its own.

    Example: score(model, [Example((Row(np.array([1, 2, 3]), 2),))], 4096)[0][0].loss
    """
    if model.device.type == "cpu":
        tokens_at_once = min(tokens_at_once, TOKENS_AT_ONCE_ON_CPU)
    can_share = isinstance(model, FusedModel)
    jobs = [job for e, ex in enumerate(examples) for job in jobs_of(e, ex.rows, can_share)]
    scores = [[None] * len(example.rows) for example in examples]
    for batch in batches(jobs, tokens_at_once):
        found = score_rows(model, read(model, batch), [row for job in batch for row in job.rows])
        places = (place for job in batch for place in job.places)
        for (e, i), one in zip(places, found, strict=True):
            scores[e][i] = one
    return scores


def jobs_of(e: int, rows: Sequence[Row], can_share: bool) -> list[Job]:
    """One job that reads the common beginning once, or a job for each row."""
    if not can_share:
        return [Job([(e, i)], [row], 0, len(row.ids) - 1) for i, row in enumerate(rows)]
    # The token before the first scored one is read with each row, because it predicts it.
    starts = [row.start - 1 for row in rows]
    shared = min(common_prefix([row.ids for row in rows]), *starts)
    rest = sum(len(row.ids) - 1 - shared for row in rows)
    return [Job([(e, i) for i in range(len(rows))], rows, shared, rest)]


def batches(jobs: Sequence[Job], tokens_at_once: int) -> list[list[Job]]:
    """Jobs of similar lengths together, the longest first."""

    def order(job: Job) -> tuple[int, int]:
        # subtle: `rest` falls and rises in turns, so that it does not jump where `shared` changes
        step = round_up(job.shared, LENGTH_MULTIPLE)
        return -step, job.rest if step // LENGTH_MULTIPLE % 2 else -job.rest

    found: list[list[Job]] = []
    P = Q = 0
    for job in sorted(jobs, key=order):
        P, Q = max(P, job.shared), max(Q, job.rest)
        width = round_up(P, LENGTH_MULTIPLE) + round_up(Q, LENGTH_MULTIPLE)
        if not found or (len(found[-1]) + 1) * width > tokens_at_once:
            found.append([])
            P, Q = job.shared, job.rest
        found[-1].append(job)
    return found


def padded(parts: Sequence[np.ndarray], width: int, value: int, device) -> torch.Tensor:
    """(len(parts), width) int64 on the device: `parts`, and then `value`."""
    table = np.full((len(parts), width), value, dtype=np.int64)
    for line, part in zip(table, parts, strict=True):
        line[: len(part)] = part
    return torch.from_numpy(table).to(device)


def read(model: FusedModel | TransformersModel, jobs: Sequence[Job]) -> torch.Tensor:
    """(N, D): the features that predict the scored tokens of the jobs' rows, row after row; of a
    TransformersModel (N, V), the logits."""
    B, device, context = len(jobs), model.device, model.config.sequence_len
    # subtle: a beginning of no token is read as padding, which nothing sees
    P = min(round_up(max(1, *(job.shared for job in jobs)), LENGTH_MULTIPLE), context)
    Q = round_up(max(job.rest for job in jobs), LENGTH_MULTIPLE)
    Q = min(Q, context) if isinstance(model, TransformersModel) else Q
    rests, owners, places = [], [], []
    for b, job in enumerate(jobs):
        lengths = [len(row.ids) - 1 - job.shared for row in job.rows]
        rests.append(np.concatenate([row.ids[job.shared : -1] for row in job.rows]))
        owners.append(np.repeat(np.arange(len(lengths)), lengths))
        ends = b * Q + np.cumsum(lengths)
        scored = [len(row.ids) - row.start for row in job.rows]
        places += [np.arange(end - n, end) for end, n in zip(ends, scored, strict=True)]
    inputs = padded(rests, Q, 0, device)
    places = torch.from_numpy(np.concatenate(places)).to(device)
    if isinstance(model, TransformersModel):
        return model.logits_at(inputs, places)
    at_p, at_q = torch.arange(P, device=device), torch.arange(Q, device=device)
    beginnings = padded([job.rows[0].ids[: job.shared] for job in jobs], P, 0, device)
    before = PaddedRows(at_p.expand(B, P))
    model.features(beginnings.flatten(), before)
    # A token sees the beginning, and the tokens of its own row up to itself.
    lengths = torch.tensor([[job.shared] for job in jobs], device=device)
    owner = padded(owners, Q, -1, device)
    own = (owner[:, :, None] == owner[:, None, :]) & (at_q <= at_q[:, None])  # (B, Q, Q)
    sees = torch.cat([(at_p < lengths)[:, None].expand(B, Q, P), own], -1)  # (B, Q, P + Q)
    # subtle: clamped for the padding, which may be longer than the context
    positions = (lengths + own.sum(-1) - 1).clamp(max=context - 1)  # (B, Q)
    rows = PaddedRows(positions, before, as_bias(sees, model.dtype)[:, None])
    return model.features(inputs.flatten(), rows)[places]


def score_rows(model, features: torch.Tensor, rows: Sequence[Row]) -> list[Score]:
    """The Score of each row; features: what `read` gives, for the rows one after another."""
    targets = np.concatenate([row.ids[row.start :] for row in rows]).astype(np.int64)
    # subtle: oneDNN keeps a compiled product for every number of rows that it meets
    extra = -len(targets) % HEAD_MULTIPLE
    features = F.pad(features, (0, 0, 0, extra))
    targets = F.pad(torch.from_numpy(targets), (0, extra)).to(features.device)
    step = round_up(LOGITS_AT_ONCE // model.config.vocab_size, HEAD_MULTIPLE)
    losses, greedy = [], []
    for some, wanted in zip(features.split(step), targets.split(step), strict=True):
        logits = model.logits(some) if isinstance(model, FusedModel) else some  # (n, V)
        losses += F.cross_entropy(logits, wanted, reduction="none").tolist()
        greedy += (logits.argmax(-1) == wanted).tolist()
    ends = np.cumsum([len(row.ids) - row.start for row in rows]).tolist()
    return [
        Score(sum(losses[first:last]) / (last - first), all(greedy[first:last]))
        for first, last in zip([0, *ends], ends, strict=False)
    ]
