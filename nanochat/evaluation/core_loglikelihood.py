"""What a model thinks of rows of token ids: fast, and one row at a time as the slow twin.

The rows of one example share their beginning, which is read once. Then the rest of all its rows is
read as one sequence whose tokens see the beginning and their own row. The head is applied only
where a token is scored. Dimensions: B examples or rows, P tokens of a beginning, Q tokens of the
rests, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from nanochat.evaluation.core_prompts import Example, Row, common_prefix
from nanochat.evaluation.hf_baseline import TransformersModel

WORTH_SHARING = 8  # tokens; a shorter common beginning is read with each row
ROUND_TO = 32  # lengths are padded to multiples of this, so that few different shapes occur
ROWS_OF_THE_HEAD = 128  # and the head's rows to multiples of this
TOKENS_AT_ONCE_ON_CPU = 4096  # more leave the processor's caches: measured, see dev/LOG.md
LOGITS_AT_ONCE = 2**25  # float32 numbers: 128 MiB


class Score(NamedTuple):
    """Of one row: the mean loss of its scored tokens in nats, and whether each of them is the one
    that the model finds likeliest."""

    loss: float
    is_greedy: bool


class SharedBeginnings:
    """Keys and values of B beginnings, each of which several rows continue: what GPT.features wants
    of a cache, for one reading of the beginnings and one of the rests.

    lengths: of the beginnings. continue_with(option) comes between the readings; option (B, Q) says
    to which row a token belongs, and -1 where there is none; a row's tokens stand together.
    """

    def __init__(self, lengths: torch.Tensor):
        self.lengths = lengths  # (B,)
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self._positions = self._mask = None

    def continue_with(self, option: torch.Tensor) -> None:
        P, Q = self.keys[0].shape[2], option.shape[1]
        now = torch.arange(Q, device=option.device)
        # The first token of a row follows the beginning; (Q, Q) says which tokens came before.
        before = (option[:, :, None] == option[:, None, :]) & (now <= now[:, None])  # (B, Q, Q)
        self._positions = self.lengths[:, None] + before.sum(-1) - 1  # (B, Q)
        sees = torch.arange(P, device=option.device) < self.lengths[:, None]  # (B, P)
        self._mask = torch.cat([sees[:, None].expand(-1, Q, -1), before], -1)[:, None]

    def positions(self, T: int) -> torch.Tensor:
        if self._mask is None:
            return torch.arange(T, device=self.lengths.device)[None]
        return self._positions

    def mask(self, T: int) -> torch.Tensor | None:
        return self._mask

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor):
        if self._mask is None:
            self.keys.append(k)
            self.values.append(v)
            return k, v
        return torch.cat([self.keys[layer], k], 2), torch.cat([self.values[layer], v], 2)

    def advance(self, T: int) -> None:
        pass  # there are two readings, and both lengths are known


class Job(NamedTuple):
    """Rows to be read together: `shared` ids of their beginning once, `rest` ids in all."""

    places: list[tuple[int, int]]  # (example, row) of each
    rows: Sequence[Row]
    shared: int
    rest: int


@torch.inference_mode()
def score(model, examples: Sequence[Example], tokens_at_once: int) -> list[list[Score]]:
    """The Score of every row of every example. At most about `tokens_at_once` tokens are read at a
    time (on a CPU fewer), but at least one example.

    model: a GPT, an Engine's model, or a TransformersModel, which reads each row whole.

    Example: score(model, [Example((Row(np.array([1, 2, 3]), 2),))], 4096)[0][0].loss
    """
    if model.device.type == "cpu":
        tokens_at_once = min(tokens_at_once, TOKENS_AT_ONCE_ON_CPU)
    can_share = not isinstance(model, TransformersModel)
    jobs = [job for e, ex in enumerate(examples) for job in jobs_of(e, ex.rows, can_share)]
    scores = [[None] * len(example.rows) for example in examples]
    for batch in batches(jobs, tokens_at_once):
        features = read_shared(model, batch) if batch[0].shared else read_whole(model, batch)
        found = iter(judge(model, features, [row for job in batch for row in job.rows]))
        for e, i in (place for job in batch for place in job.places):
            scores[e][i] = next(found)
    return scores


def jobs_of(e: int, rows: Sequence[Row], can_share: bool) -> list[Job]:
    """One job where it pays to read a common beginning once, else a job for each row."""
    shared = 0
    if can_share and len(rows) > 1:
        # The token before the first scored one is read with each row, because it predicts it.
        shared = min(common_prefix([row.ids for row in rows]), *(row.start - 1 for row in rows))
    if shared < WORTH_SHARING:
        return [Job([(e, i)], [row], 0, len(row.ids) - 1) for i, row in enumerate(rows)]
    rest = sum(len(row.ids) - 1 - shared for row in rows)
    return [Job([(e, i) for i in range(len(rows))], rows, shared, rest)]


def round_up(n: int) -> int:
    return -(-n // ROUND_TO) * ROUND_TO


def batches(jobs: Sequence[Job], tokens_at_once: int) -> list[list[Job]]:
    """Jobs of similar lengths together, the longest first, those without a beginning apart."""

    def order(job: Job) -> tuple[int, int]:
        # subtle: `rest` falls and rises in turns, so that it does not jump where `shared` changes
        step = round_up(job.shared) // ROUND_TO
        return -step, job.rest if step % 2 else -job.rest

    found: list[list[Job]] = []
    P = Q = 0
    for job in sorted(jobs, key=order):
        P, Q = max(P, job.shared), max(Q, job.rest)
        fits = found and (len(found[-1]) + 1) * (round_up(P) + round_up(Q)) <= tokens_at_once
        if not fits or (job.shared == 0) != (found[-1][0].shared == 0):
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


def read_whole(model, jobs: Sequence[Job]) -> torch.Tensor:
    """(N, D): the features that predict the scored tokens, of rows read from their first token."""
    rows = [job.rows[0] for job in jobs]
    T = min(round_up(max(job.rest for job in jobs)), model.config.sequence_len)
    features = model.features(padded([row.ids[:-1] for row in rows], T, 0, model.device))
    places = [b * T + np.arange(row.start - 1, len(row.ids) - 1) for b, row in enumerate(rows)]
    return features.flatten(0, 1)[torch.from_numpy(np.concatenate(places)).to(model.device)]


def read_shared(model, jobs: Sequence[Job]) -> torch.Tensor:
    """As read_whole, of rows that share a beginning: it is read once, the rests side by side."""
    device = model.device
    P, Q = (round_up(max(n)) for n in zip(*((j.shared, j.rest) for j in jobs), strict=True))
    cache = SharedBeginnings(torch.tensor([job.shared for job in jobs], device=device))
    model.features(padded([j.rows[0].ids[: j.shared] for j in jobs], P, 0, device), cache)
    rests, options, places = [], [], []
    for b, job in enumerate(jobs):
        lengths = [len(row.ids) - 1 - job.shared for row in job.rows]
        rests.append(np.concatenate([row.ids[job.shared : -1] for row in job.rows]))
        options.append(np.repeat(np.arange(len(lengths)), lengths))
        ends = b * Q + np.cumsum(lengths)
        scored = [len(row.ids) - row.start for row in job.rows]
        places += [np.arange(end - n, end) for end, n in zip(ends, scored, strict=True)]
    cache.continue_with(padded(options, Q, -1, device))
    features = model.features(padded(rests, Q, 0, device), cache)
    return features.flatten(0, 1)[torch.from_numpy(np.concatenate(places)).to(device)]


def judge(model, features: torch.Tensor, rows: Sequence[Row]) -> list[Score]:
    """The Score of each row; features (N, D) predict the rows' scored tokens, one after another."""
    targets = np.concatenate([row.ids[row.start :] for row in rows]).astype(np.int64)
    # subtle: oneDNN keeps a compiled product for every number of rows that it meets
    extra = -len(targets) % ROWS_OF_THE_HEAD
    features = F.pad(features, (0, 0, 0, extra))
    targets = F.pad(torch.from_numpy(targets), (0, extra)).to(features.device)
    step = max(1, LOGITS_AT_ONCE // model.config.vocab_size // ROWS_OF_THE_HEAD) * ROWS_OF_THE_HEAD
    losses, greedy = [], []
    for part, wanted in zip(features.split(step), targets.split(step), strict=True):
        logits = model.logits(part)  # (n, V)
        losses.append(F.cross_entropy(logits, wanted, reduction="none"))
        greedy.append(logits.argmax(-1) == wanted)
    losses, greedy = torch.cat(losses).tolist(), torch.cat(greedy).tolist()
    ends = np.cumsum([len(row.ids) - row.start for row in rows]).tolist()
    return [
        Score(sum(losses[first:last]) / (last - first), all(greedy[first:last]))
        for first, last in zip([0, *ends], ends, strict=False)
    ]


@torch.inference_mode()
def score_plainly(model, examples: Sequence[Example], tokens_at_once: int = 0) -> list[list[Score]]:
    """The slow twin of `score`: one row at a time, logits after every token."""
    scores = []
    for example in examples:
        scores.append([])
        for row in example.rows:
            ids = torch.from_numpy(row.ids.astype(np.int64)).to(model.device)
            logits = model.logits(model.features(ids[None, :-1]))[0, row.start - 1 :]  # (n, V)
            loss = F.cross_entropy(logits, ids[row.start :]).item()
            is_greedy = bool((logits.argmax(-1) == ids[row.start :]).all())
            scores[-1].append(Score(loss, is_greedy))
    return scores
