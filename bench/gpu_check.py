"""What a GPU does with this code, part by part; `runs/gpu_check.sh` runs them all.

    python -m bench.gpu_check steps --out=/tmp/check             one part, on the GPU
    python -m bench.gpu_check steps --out=/tmp/check --dry-run   the same at toy size, on a CPU
    python -m bench.gpu_check report --out=/tmp/check            gpu_check.json and gpu_check.md

Each part writes OUT/<part>.json; needs torch, numpy and safetensors alone.
"""

import argparse
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch

from bench.gpu_kernels import attention, engine, machine, optimizers
from bench.gpu_sizes import Sizes
from bench.gpu_training import checkpoint, deterministic, float16, sft, steps


def tests(sizes: Sizes) -> dict:
    """The tests that need a GPU."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/test_cuda.py",
        "--no-header",
        "--tb=short",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    return {"exit": done.returncode, "last lines": done.stdout.strip().splitlines()[-60:]}


PARTS = {
    f.__name__: f
    for f in (
        machine,
        attention,
        optimizers,
        sft,
        engine,
        float16,
        deterministic,
        tests,
        checkpoint,
    )
}


# ---------------------------------------------------------------- report


def table(found: dict) -> str:
    """Markdown: a section a part, a line a figure."""
    lines = ["# GPU check", ""]
    for name, part in found.items():
        lines += [f"## {name}", "", "| figure | value |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in part.items()]
        lines.append("")
    return "\n".join(lines)


def report(out: Path) -> None:
    """Joins what the parts wrote."""
    files = sorted(out.glob("part-*.json"), key=lambda path: path.stat().st_mtime)
    found = {path.stem.removeprefix("part-"): json.loads(path.read_text()) for path in files}
    (out / "gpu_check.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "gpu_check.md").write_text(table(found))
    for path in files:
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "part", help="steps:DEPTH:ROWS[:ACCUM][:fp8], report, or " + ", ".join(PARTS)
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == "report":
        return report(args.out)
    torch.set_float32_matmul_precision("high")
    sizes = Sizes(args.dry_run)
    start = time.perf_counter()
    try:
        if args.part.startswith("steps"):
            _, depth, rows, *more = args.part.split(":")
            accum = [int(word) for word in more if word != "fp8"]
            found = steps(sizes, int(depth), int(rows), *accum, fp8="fp8" in more)
        else:
            found = PARTS[args.part](sizes)
    except Exception as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    found["seconds"] = round(time.perf_counter() - start, 1)
    name = args.part.replace(":", "-")
    (args.out / f"part-{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: found}, indent=1), flush=True)


if __name__ == "__main__":
    main()
