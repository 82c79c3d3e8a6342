"""A live line per training step, and the metrics file that everything later is drawn from."""

import sys
import time
from pathlib import Path

from nanochat.common import print0, rank_and_world
from nanochat.metrics import append_metrics

SECONDS_BETWEEN_LINES = 5  # in a log; a terminal gets every step


class TrainLog:
    """log(state, metrics) shows a step and appends it to metrics.jsonl; note() adds evaluations.

    flops_per_token and peak (FLOP/s of all ranks together) give MFU, by the model's own formula.
    """

    def __init__(self, run_folder: Path, stage: str, *, flops_per_token: int, peak: float):
        self.run_folder, self.stage = run_folder, stage
        self.flops_per_token, self.peak = flops_per_token, peak
        self.last_line = float("-inf")
        self.extra, self.bar = "", None
        if rank_and_world()[0] == 0 and sys.stdout.isatty():
            self.bar, self.task = make_bar(stage)

    def write(self, record: dict) -> None:
        append_metrics(self.run_folder, {"stage": self.stage, **record})

    def __call__(self, state, metrics: dict) -> None:
        tokens_per_second = metrics["tokens_computed"] / metrics["dt"]
        mfu = tokens_per_second * self.flops_per_token / self.peak
        self.write(
            {**metrics, "tokens_per_second": round(tokens_per_second, 1), "mfu": round(mfu, 4)}
        )
        total = state.num_steps
        left = (total - metrics["step"]) * state.seconds / max(1, state.step) if total else None
        line = (
            f"{self.stage} {metrics['step']:>5,}/{f'{total:,}' if total else '?'} | "
            f"loss {state.average_loss:.4f} | lr x{metrics['lr']:.3f} | "
            f"{tokens_per_second:,.0f} tokens/s | MFU {100 * mfu:.1f}% | "
            f"{f'{left / 60:.1f} min left' if left is not None else 'timing'}{self.extra}"
        )
        if self.bar:
            self.bar.update(self.task, completed=metrics["step"], total=total, description=line)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES or metrics["step"] == total:
            self.last_line = time.monotonic()
            print0(line)

    def note(self, state, **figures: float) -> None:
        """Records evaluation figures at the current step, and shows them from now on."""
        self.write({"step": state.step, **figures})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self.extra = f" | {shown}"
        print0(f"{self.stage} step {state.step:,}: {shown}")

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def make_bar(stage: str):
    """A started rich progress bar whose description is the live line."""
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(TextColumn("{task.description}"), BarColumn(bar_width=None))
    bar.start()
    return bar, bar.add_task(stage, total=None)
