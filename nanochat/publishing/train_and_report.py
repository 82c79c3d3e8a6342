"""A stage's training with what the platform adds to it: energy, a mirror, the report."""

from collections.abc import Callable
from contextlib import closing, nullcontext

from nanochat.common import compute_cleanup
from nanochat.publishing.mirror import Mirror
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
    """stage.train with the energy measured and every checkpoint copied to --mirror; makes the
    report of the run anew, and leaves the group of ranks."""
    spec, meter = stage.config.mirror, open_meter(stage.model.device)
    with closing(Mirror(spec)) if spec else nullcontext() as mirror:
        on_save = mirror.push if mirror else None
        stage.train(data, plan, events, steps, meter=meter, on_save=on_save)
    remake(stage.tag)
    compute_cleanup()
