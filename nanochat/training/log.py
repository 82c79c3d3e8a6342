"""A live line of progress, and the metrics file that reports are made of."""

import json
import os
import sys
import time
from pathlib import Path

import torch

from nanochat.checkpoint.rng import git_commit, versions
from nanochat.common import print0, rank_and_world
from nanochat.files import write_atomic
from nanochat.hardware import device_name, peak_flops

METRICS = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 5  # in a log; on a terminal one line follows every step


def ranks_of_this_node() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class TrainLog:
    """log(state, metrics) shows a step and appends it to metrics.jsonl; note() adds evaluations.

    session: see session_of. meter: of energy, with `source` and record(at_end), what to add to a
    step's record; or None.
    """

    def __init__(self, run_folder: Path, stage: str, session: dict, step: int, meter=None):
        self.run_folder, self.stage, self.session, self.meter = run_folder, stage, session, meter
        self.extra, self.live, self.last_line = "", None, float("-inf")
        energy = {"energy_source": meter.source} if meter else {}
        self.write({"step": step, "session": session | energy})
        if rank_and_world()[0] == 0 and sys.stdout.isatty():
            from rich.live import Live

            self.live = Live()
            self.live.start()

    def write(self, record: dict) -> None:
        append_metrics(self.run_folder, {"stage": self.stage, **record})

    def __call__(self, state, metrics: dict) -> None:
        session, step, total = self.session, metrics["step"], state.num_steps
        tokens, computed, dt = metrics["tokens"], metrics["tokens_computed"], metrics["dt"]
        flops = computed * session["flops_per_token"] - tokens * session["flops_unsampled"]
        flops -= (computed - tokens) * session["flops_spared"]
        speed, share = computed / dt, flops / dt / session["peak_flops"]
        rates = {"tokens_per_second": round(speed, 1), "mfu": round(share, 4), "flops": flops}
        self.write(metrics | rates | (self.meter.record(step == total) if self.meter else {}))
        of, left = "?", "timing"
        if total:
            minutes = (total - step) * state.seconds / max(1, state.step) / 60
            of, left = f"{total:,}", f"{minutes:.1f} min left"
        line = (
            f"{self.stage} {step:>5,}/{of} | loss {state.average_loss:.4f} | "
            f"lr x{metrics['lr']:.3f} | {speed:,.0f} tokens/s | "
            f"MFU {share:.1%} | {left}{self.extra}"
        )
        if self.live:
            self.live.update(line)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES or step == total:
            self.last_line = time.monotonic()
            print0(line)

    def note(self, state, **figures: float) -> None:
        """Records figures at the current step, and shows them from now on."""
        self.write({"step": state.step, **figures})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self.extra = f" | {shown}"
        print0(f"{self.stage} step {state.step:,}: {shown}")

    def close(self) -> None:
        if self.live:
            self.live.stop()


def session_of(model, row_tokens: int, sampled_ids: int) -> dict:
    """What this start of the script runs on and with; peak_flops: of all ranks. FLOPs of attention
    within documents, which are short, are left out."""
    world, c = rank_and_world()[1], model.config
    seen = row_tokens if model.document_start is None else 1
    peak, source = peak_flops(model.device, model.compute_dtype)
    print0(f"MFU is against {world} x {peak / 1e12:.3g} TFLOP/s ({source})")
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec else [Path(sys.argv[0]).name]
    return {
        "command": ["python", *program, *sys.argv[1:]],
        "device": device_name(model.device),
        "ranks": world,
        "torchrun": os.environ.get("TORCHELASTIC_RUN_ID"),
        "nodes": max(1, world // ranks_of_this_node()),
        "dtype": str(model.compute_dtype).removeprefix("torch."),
        "flops_per_token": model.flops_per_token(seen),
        "flops_spared": model.flops_without_target() if model.device.type == "cpu" else 0,
        "flops_unsampled": 6 * c.n_embd * max(0, c.vocab_size - (sampled_ids or c.vocab_size)),
        "peak_flops": peak * world,
        "peak_source": source,
        "cuda": torch.version.cuda if model.device.type == "cuda" else None,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def append_metrics(run_folder: Path | str, record: dict) -> None:
    """Appends a record such as {"stage": "base", "step": 10, "loss": 4.2}, with the time, on rank
    0. A line that cannot be written is printed: training goes on."""
    if rank_and_world()[0] != 0:
        return
    path = Path(run_folder) / METRICS
    line = json.dumps({"time": time.time(), **record}) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # a crash cut the last line short: begin a new one
                    line = "\n" + line
            file.write(line.encode())
    except OSError as error:  # a full disk may have room again before the next checkpoint
        print0(f"{path}: a line was not written: {error}")


def read_metrics(run_folder: Path | str) -> list[dict]:
    """The records in order, [] without a file. Other lines, such as one that a crash cut short, are
    left out and counted in a printed line."""
    path = Path(run_folder) / METRICS
    records, broken = [], 0
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except ValueError:
            record = None
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append(record)
        else:
            broken += 1
    if broken:
        print0(f"{path}: left out {broken} lines that are not records of a step")
    return records


def truncate_metrics(run_folder: Path | str, step: int) -> None:
    """Removes, atomically, the lines past the resumed `step`; -1: all lines."""
    path = Path(run_folder) / METRICS
    if rank_and_world()[0] == 0 and path.exists():
        kept = [record for record in read_metrics(run_folder) if record["step"] <= step]
        write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
