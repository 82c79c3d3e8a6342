"""The one training loop that every stage shares, and its events."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch

from nanochat.common import NanochatError, all_reduce_sum, on_rank0, print0, rank_and_world
from nanochat.dataloader import Batch

SMALLEST_SCALE = 2.0**-8  # 22 overflows below the first
TIMED_STEPS = 20  # before a horizon in seconds becomes steps
WARM_STEPS = 3  # not timed: they compile
WHAT_TO_TRY = (
    "Nothing was saved from this step on. From the last checkpoint, with --resume, try a lower "
    "learning rate (--lr-scale 0.5), a longer warm-up (--warmup 0.05), or NANOCHAT_DTYPE=float32."
)


class DivergedError(NanochatError):
    """The loss or the gradients are no longer finite, or exploded."""


@dataclass
class LoopState:
    """The loop's own state, saved with every checkpoint."""

    step: int = 0  # completed steps
    num_steps: int | None = None  # None until a horizon in seconds is known
    seconds: float = 0.0  # in all sessions
    tokens: int = 0  # targets trained on
    average_loss: float = 0.0  # 0.1 of the newest
    best_loss: float = float("inf")
    skipped: int = 0  # float16 overflowed

    @property
    def progress(self) -> float:
        """The fraction done, 0..1; 0 while the horizon is not known."""
        return self.step / self.num_steps if self.num_steps else 0.0


@dataclass(frozen=True)
class Periodic:
    """Runs between steps, on all ranks: every `every` steps and at the end (0: at the end alone;
    -1: never), and before the first if at_start."""

    run: Callable[[LoopState], None]
    every: int
    at_start: bool = False

    def due(self, state: LoopState) -> bool:
        if state.step == 0:
            return self.at_start
        if state.step == state.num_steps:
            return self.every >= 0
        return self.every > 0 and state.step % self.every == 0


def horizon_from_clock(durations: list[float], seconds: float, spent: float, step: int) -> int:
    """Steps that fit into `seconds`, of which `step` steps `spent` some, by rank 0's median."""
    num_steps = on_rank0(lambda: step + max(1, round((seconds - spent) / median(durations[-99:]))))
    print0(f"{seconds:.0f} s of training will be {num_steps:,} steps")
    return num_steps


@dataclass
class LossScaler:
    """float16 loses gradients below 6e-8, so the loss is multiplied by a power of two, doubled
    after 2,000 good steps, halved at an overflow (Micikevicius et al. 2018)."""

    scale: float = 2.0**14
    good_steps: int = 0

    def accept(self, norm: torch.Tensor) -> bool:
        """Whether to take a step with this gradient norm; adjusts the scale."""
        finite = bool(norm.isfinite())  # waits for the device
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale /= 2
            if self.scale < SMALLEST_SCALE:
                raise DivergedError(
                    f"float16 overflowed down to a scale of {self.scale}: the weights have grown "
                    f"too large. {WHAT_TO_TRY}"
                )
        elif self.good_steps % 2000 == 0:
            self.scale *= 2
        return finite


class OneRank:
    """Backward pass and update in one process; training/distributed.py has those of several."""

    def __init__(self, model):
        assert rank_and_world()[1] == 1
        self.owned = dict(model.named_parameters())  # what this rank updates

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Of a micro-batch; last: of the step."""
        loss.backward()

    def gradients(self) -> list[torch.Tensor]:
        """Of what this rank updates, over all ranks."""
        return [p.grad for p in self.owned.values() if p.grad is not None]

    def norm(self, grads: list[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.get_total_norm(grads, foreach=True)

    def update(self, optimizers) -> None:
        for optimizer in optimizers:
            optimizer.step()

    def weights(self, model) -> dict[str, torch.Tensor]:
        """All weights by name, on rank 0."""
        return dict(model.named_parameters())

    def whole_state(self, name: str, optimizer) -> dict[str, torch.Tensor]:
        """What all ranks keep for the optimizer of this name, on rank 0."""
        return optimizer.state_tensors()

    def own_state(self, name: str, whole: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What this rank keeps of it."""
        return whole

    def first_difference(self, model) -> str | None:
        """The first weight whose copies on several ranks differ."""
        return None


def set_rates(optimizers, values: dict) -> None:
    """Sets the schedule's values in the groups that have them, "lr" as a factor of initial_lr."""
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        for name in values.keys() & group.keys():
            group[name] = values[name] * (group["initial_lr"] if name == "lr" else 1)


def backward_pass(
    model, micro: list[Batch], count: torch.Tensor, loss_fn, ranks, scaler: LossScaler | None
) -> torch.Tensor:
    """Gradients of the step's loss, its sum divided by all ranks' `count` of targets; returns this
    rank's part of the loss."""
    loss = torch.zeros((), device=model.device)
    for batch in micro:
        part = loss_fn(model, batch) / count
        ranks.backward(part * scaler.scale if scaler else part, last=batch is micro[-1])
        loss += part.detach()
    return loss


def optimizer_step(
    model, ranks, optimizers, grad_clip: float, scaler: LossScaler | None
) -> torch.Tensor:
    """Clips the gradients (unless 0), steps, clears; returns the norm before clipping."""
    grads = ranks.gradients()
    if scaler:
        torch._foreach_mul_(grads, 1 / scaler.scale)
    norm = ranks.norm(grads)
    if not scaler or scaler.accept(norm):
        if grad_clip > 0:
            torch._foreach_mul_(grads, (grad_clip / (norm + 1e-6)).clamp(max=1))
        if optimizers:
            ranks.update(optimizers)
    model.zero_grad(set_to_none=True)
    return norm


def timestamp(device: torch.device):
    """A moment in CUDA's queue, or on the clock; see seconds_between."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start, end) -> float:
    """Waits for `end`, not for what was queued after it."""
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in main memory; from CUDA, complete once the queue has come to this point."""
    return tensor.to("cpu", non_blocking=True) if tensor.is_cuda else tensor  # pinned


def sum_of_ranks(numbers: list[int], device: torch.device) -> torch.Tensor:
    """(n,) int64: each number's sum over all ranks."""
    totals = torch.tensor(numbers)
    if rank_and_world()[1] == 1:
        return totals
    if device.type == "cuda":
        totals = totals.pin_memory()  # else the copy would wait for the device
    return all_reduce_sum(totals.to(device, non_blocking=True))


def read_step(pending: dict, state: LoopState, log, durations: list[float]) -> bool:
    """Waits for a step's numbers (see train), checks and logs them, and adds its seconds to
    `durations`; True if a rank is to stop."""
    dt = seconds_between(pending["start"], pending["end"])
    loss, norm = pending["loss_and_norm"].tolist()
    count, computed, stops = pending["totals"].tolist()
    step = pending["step"]
    state.seconds += dt
    overflow = pending["scaled"] and not math.isfinite(norm)
    state.skipped += overflow
    if not overflow:
        weight = max(0.1, 1 / (step - state.skipped))
        state.average_loss += (loss - state.average_loss) * weight
        state.best_loss = min(state.best_loss, state.average_loss)
    if not (math.isfinite(loss) and math.isfinite(norm)) and not overflow:
        raise DivergedError(f"step {step}: loss is {loss}, gradient norm {norm}. {WHAT_TO_TRY}")
    if state.average_loss > state.best_loss + 2 and not pending["policy"]:
        raise DivergedError(
            f"step {step}: the loss rose from {state.best_loss:.3f} to {state.average_loss:.3f} "
            f"(averages). {WHAT_TO_TRY}"
        )
    state.tokens += count
    log(state, {**pending["values"], "step": step, "loss": loss, "grad_norm": norm,
                "tokens": count, "tokens_computed": computed, "dt": dt})  # fmt: skip
    if step > WARM_STEPS:
        durations.append(dt)
    return stops > 0


def train(
    model,
    optimizers,
    steps: Iterator[list[Batch]],
    *,
    loss_fn,
    schedule,
    state: LoopState,
    log=lambda state, metrics: None,
    events=(),
    seconds: float | None = None,
    grad_clip: float = 1.0,
    scaler=None,
    ranks=None,
    asked_to_stop=lambda: False,
) -> bool:
    """Runs optimizer steps until state.num_steps; True when done, False when asked to stop before.

    steps yields the micro-batches of a step; loss_fn(model, batch) -> sum of losses;
    schedule(state): see set_rates. `seconds` sets state.num_steps after 20 timed steps if it is
    None, and anew at 1/2, 3/4, ... of it. A step's numbers are read one step late, so that
    nothing waits for the device. Raises DivergedError.
    """
    ranks = ranks or OneRank(model)
    device = next(model.parameters()).device
    pending, durations = None, []
    while True:
        due = [event for event in events if event.due(state)]
        finished = state.step == state.num_steps
        if pending and (due or finished):
            read_step(pending, state, log, durations)
            pending = None
        for event in due:
            event.run(state)
        if finished:
            return True
        if seconds and len(durations) >= max(TIMED_STEPS, (state.num_steps or 0) - state.step):
            state.num_steps = horizon_from_clock(durations, seconds, state.seconds, state.step)
            durations.clear()
        start, values = timestamp(device), schedule(state)
        set_rates(optimizers, values)
        micro = next(steps)
        counts = sum(b.num_targets for b in micro), sum(b.inputs.numel() for b in micro)
        totals = sum_of_ranks([*counts, int(asked_to_stop())], device)
        loss = backward_pass(model, micro, totals[0].clamp(min=1), loss_fn, ranks, scaler)
        policy = micro[0].weights is not None  # its loss is of any size
        # subtle: where it has nothing to learn, momentum would move the weights all the same
        idle = policy and int(totals[0]) == 0
        norm = optimizer_step(model, ranks, () if idle else optimizers, grad_clip, scaler)
        state.step += 1
        newest = {
            "step": state.step,
            "policy": policy,
            "values": values,
            "loss_and_norm": to_host(torch.stack([all_reduce_sum(loss), norm])),
            "totals": to_host(totals),
            "start": start,
            "end": timestamp(device),
            "scaled": scaler is not None,
        }
        stop = pending and read_step(pending, state, log, durations)
        pending = newest
        if stop:
            read_step(pending, state, log, durations)
            return False
