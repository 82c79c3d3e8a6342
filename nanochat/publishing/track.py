"""A run's metrics in wandb, trackio or TensorBoard too (--track), read from metrics.jsonl."""

import importlib
import json
import math
import time
from dataclasses import asdict

from nanochat.common import print0, rank_and_world, require_package
from nanochat.train import LoopState
from nanochat.training.log import METRICS
from nanochat.training.stage import Stage

STEPS_BETWEEN_UPDATES = 10


class Tracker:
    """update() sends what metrics.jsonl has gained, on rank 0. Whatever goes wrong is printed, and
    the training goes on without it.

    kind: "wandb" or "trackio", where a run is named after tag and stage in the project nanochat
    (their environment variables say otherwise), or "tensorboard", in a folder beside the metrics.
    """

    def __init__(self, kind: str, stage: Stage):
        require_package(kind, f"pip install {kind}")
        self.kind, self.stage, self.since, self.offset = kind, stage, time.time(), 0
        self.log = self.finish = None

    def open(self) -> None:
        stage = self.stage
        if self.kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(stage.run_folder / "tensorboard")

            def log(figures: dict, step: int) -> None:
                for name, value in figures.items():
                    writer.add_scalar(name, value, step)

            self.log, self.finish = log, writer.close
        else:
            library = importlib.import_module(self.kind)
            names = {"group": stage.tag, "name": f"{stage.tag}-{stage.name}"}
            library.init(project="nanochat", config=asdict(stage.config), **names)
            self.log, self.finish = library.log, library.finish

    def update(self, state: LoopState | None = None) -> None:
        if rank_and_world()[0] != 0 or self.kind is None:
            return
        try:
            if self.log is None:
                self.open()
            with (self.stage.run_folder / METRICS).open("rb") as file:
                file.seek(self.offset)
                text = file.read()
            lines = text[: text.rfind(b"\n") + 1].splitlines()
            self.offset += text.rfind(b"\n") + 1
            for record in map(json.loads, lines):
                if record["time"] >= self.since and (figures := numbers(record)):
                    self.log(figures, step=record["step"])
        except Exception as error:  # subtle: their clients raise many kinds
            print0(f"--track {self.kind}: stopped by {error!r:.300}; metrics.jsonl goes on")
            self.kind = None

    def close(self) -> None:
        """Sends the rest."""
        self.update()
        if self.finish:
            self.finish()


def numbers(record: dict) -> dict[str, float]:
    """The figures of a record, named after their stage: {"base/loss": 4.2}."""
    left_out = ("step", "time")
    return {
        f"{record['stage']}/{name}": value
        for name, value in record.items()
        if type(value) in (int, float) and math.isfinite(value) and name not in left_out
    }
