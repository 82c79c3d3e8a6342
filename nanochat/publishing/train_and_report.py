"""A stage's training with what the platform adds to it: energy, a mirror, a tracker, the report."""

from collections.abc import Callable
from contextlib import ExitStack, closing

from nanochat.common import compute_cleanup
from nanochat.files import base_dir, locked
from nanochat.publishing.mirror import Mirror
from nanochat.publishing.track import STEPS_BETWEEN_UPDATES, Tracker
from nanochat.report.energy import open_meter
from nanochat.report.report import remake
from nanochat.train import Periodic
from nanochat.training.batch_plan import BatchPlan
from nanochat.training.stage import Stage, StageData


def train_and_report(
    stage: Stage,
    data: StageData,
    plan: BatchPlan,
    events: tuple[Periodic, ...] = (),
    steps: Callable | None = None,
) -> None:
    """stage.train with the energy measured and every checkpoint copied to --mirror, the metrics
    to --track; makes the report of the run anew, and leaves the group of ranks."""
    config, meter = stage.config, open_meter(stage.model.device)
    with locked(base_dir() / "warm-up"):
        pass  # scripts/warm_up.py is done: else both would compile the same, or slow the steps
    with ExitStack() as stack:
        mirror = stack.enter_context(closing(Mirror(config.mirror))) if config.mirror else None
        if config.track:
            tracker = stack.enter_context(closing(Tracker(config.track, stage)))
            events += (Periodic(tracker.update, STEPS_BETWEEN_UPDATES, at_start=True),)
        on_save = mirror.push if mirror else None
        stage.train(data, plan, events, steps, meter=meter, on_save=on_save)
    remake(stage.tag)
    compute_cleanup()
