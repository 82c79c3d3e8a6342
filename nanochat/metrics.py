"""metrics.jsonl: one line a measurement, in a run's folder; plots and reports are made from it."""

import json
import time
from pathlib import Path

from nanochat.common import print0, rank_and_world, write_atomic

METRICS = "metrics.jsonl"


def append_metrics(run_folder: Path | str, record: dict) -> None:
    """Appends {"stage", "step", ...} with the time; rank 0 writes, the others do nothing.

    Example: append_metrics(run_folder, {"stage": "base", "step": 10, "loss": 4.2})
    """
    if rank_and_world()[0] != 0:
        return
    path = Path(run_folder) / METRICS
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": time.time(), **record}) + "\n"
    with path.open("a+b") as file:
        end = file.seek(0, 2)
        if end:
            file.seek(end - 1)
            if (
                file.read(1) != b"\n"
            ):  # a crash cut the last line short: keep it from spoiling this one
                line = "\n" + line
        file.write(line.encode())


def read_metrics(run_folder: Path | str) -> list[dict]:
    """The records in order, [] without a file; lines that are none (cut short by a crash, without a
    step, not UTF-8) are left out and their number is printed."""
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
        print0(f"{path}: left out {broken} lines that are no record of a step (as after a crash)")
    return records


def truncate_metrics(run_folder: Path | str, step: int) -> int:
    """Removes, atomically, the lines past the resumed `step`; returns how many. -1: all lines."""
    if rank_and_world()[0] != 0:
        return 0
    records = read_metrics(run_folder)
    kept = [record for record in records if record["step"] <= step]
    if records or (Path(run_folder) / METRICS).exists():
        write_atomic(Path(run_folder) / METRICS, "".join(json.dumps(r) + "\n" for r in kept))
    return len(records) - len(kept)
