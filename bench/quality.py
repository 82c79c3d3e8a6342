"""Quality for the same processor time: a stage trained under several settings, in turn.

    python -m bench.quality --stage=base --seconds=200 \
        --settings "3 iterations: --muon-iterations=3" "5 iterations: --muon-iterations=5"
    python -m bench.quality --stage=mid --parent=d3 --common "--mixture=facts:1,arithmetic:1 ..."

What a step costs is found first, from processor times of a short and a longer run, so that each
setting gets as many steps as `seconds` pay for: start-up and compilation do not count, and another
program on the machine changes little. Every setting is trained with every seed. A base model is
measured in bits per byte of the validation text, the others by the accuracy of their answers.
Prints means, standard errors over the seeds and the difference to the first setting; writes
bench/results/quality-<machine>.json. Runs are kept under NANOCHAT_BASE_DIR as quality-<setting>.
"""

import json
import resource
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from bench.record import write_record
from nanochat.checkpoint.index import run_dir
from nanochat.common import ConfigError
from nanochat.configurator import cli
from nanochat.hardware import device_name

SCRIPTS = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft"}
PARENT = {"mid": "--base-tag", "sft": "--parent-tag"}
PROBES = 5, 20  # steps of the two runs that find what a step costs


@dataclass(frozen=True)
class Config:
    settings: tuple[str, ...] = ()
    """What is compared, each as "name: flags of the stage's script"."""
    stage: Literal["base", "mid", "sft"] = "base"
    """The stage that is trained."""
    parent: str = ""
    """Run of the stage before it to begin with; default: its newest."""
    common: str = ""
    """Flags for every setting."""
    seconds: float = 120.0
    """Processor time of a run's steps, over all threads."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Each is one run of every setting."""
    tasks: str = "free|arithmetic|spell|count|facts|identity|unknown"
    """What a chat model is asked."""
    limit: int = 400
    """Questions of each task."""


def run(module: str, *flags: str) -> float:
    """Runs a script; returns the processor time that it took, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", module, *flags], capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{module} {shlex.join(flags)} failed:\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


class Setting:
    """One setting: its flags and what a step of it costs."""

    def __init__(self, text: str, config: Config):
        self.name, found, flags = text.partition(":")
        if not found:
            raise ConfigError(f'{text!r} is no setting; expected "name: flags"')
        self.config, self.tag = config, "quality-" + self.name.replace(" ", "-")
        self.flags = [*shlex.split(config.common), *shlex.split(flags)]
        if config.parent and config.stage in PARENT:
            self.flags.append(f"{PARENT[config.stage]}={config.parent}")

    def train(self, seed: int, steps: int) -> float:
        return run(
            f"scripts.{SCRIPTS[self.config.stage]}", *self.flags, f"--model-tag={self.tag}",
            "--fresh", f"--seed={seed}", f"--num-steps={steps}", "--eval-every=0", "--save-every=0",
        )  # fmt: skip

    def find_steps(self) -> int:
        """How many steps the budget pays for. The first run fills caches and is not counted."""
        self.train(self.config.seeds[0], 1)
        short, longer = (self.train(self.config.seeds[0], steps) for steps in PROBES)
        self.seconds_per_step = (longer - short) / (PROBES[1] - PROBES[0])
        return max(1, round(self.config.seconds / self.seconds_per_step))

    def measure(self) -> dict[str, float]:
        """Bits per byte of the newest run, or its accuracies in %."""
        config = self.config
        if config.stage != "base":
            run(
                "scripts.chat_eval", f"--source={config.stage}", f"--model-tag={self.tag}",
                f"--tasks={config.tasks}", f"--limit={config.limit}",
            )  # fmt: skip
        lines = (run_dir(config.stage, self.tag) / "metrics.jsonl").read_text().splitlines()
        figures = {k: v for line in lines for k, v in json.loads(line).items()}
        if config.stage == "base":
            return {"bits per byte": figures["val_bpb"]}
        prefix = "accuracy/"
        return {k.removeprefix(prefix): 100 * v for k, v in figures.items() if k.startswith(prefix)}


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error, which is nan for one value."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.fmean(values), error


def show(results: dict[str, list[dict]], steps: dict[str, int], title: str) -> None:
    """A row a setting; differences to the first are paired by seed."""
    first = next(iter(results.values()))
    table = Table("setting", "steps", *first[0], title=title)
    for name, runs in results.items():
        cells = []
        for figure in first[0]:
            mean, error = mean_and_error([run[figure] for run in runs])
            cell = f"{mean:.3f} ± {error:.3f}"
            if runs is not first:
                pairs = zip(runs, first, strict=True)
                mean, error = mean_and_error([run[figure] - other[figure] for run, other in pairs])
                cell += f"\n({mean:+.3f} ± {error:.3f})"
            cells.append(cell)
        table.add_row(name, f"{steps[name]:,}", *cells)
    Console().print(table)


def main(config: Config) -> None:
    if len(config.settings) < 2:
        raise ConfigError('give --settings two or more of "name: flags"')
    settings = [Setting(text, config) for text in config.settings]
    steps = {setting.name: setting.find_steps() for setting in settings}
    costs = {setting.name: setting.seconds_per_step for setting in settings}
    results: dict[str, list[dict]] = {setting.name: [] for setting in settings}
    for seed in config.seeds:
        for setting in settings:
            setting.train(seed, steps[setting.name])
            results[setting.name].append(setting.measure())
            print(f"seed {seed}, {setting.name}: {results[setting.name][-1]}", flush=True)
    machine = device_name(torch.device("cpu"))
    show(results, steps, f"{config.stage}: {config.seconds:g} s of processor time, {machine}")
    write_record(
        "quality", config, "cpu", {"steps": steps, "seconds_per_step": costs, "results": results}
    )


if __name__ == "__main__":
    cli(main, Config)
