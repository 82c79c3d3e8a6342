"""What a GPU does with this code, part by part; `runs/gpu_check.sh` runs them all.

    python -m bench.gpu_check steps --out=/tmp/check             one part, on the GPU
    python -m bench.gpu_check steps --out=/tmp/check --dry-run   the same at toy size, on a CPU
    python -m bench.gpu_check report --out=/tmp/check            gpu_check.json and gpu_check.md

Each part writes OUT/<part>.json; needs torch, numpy and safetensors alone.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from functools import partial
from itertools import repeat
from pathlib import Path

import torch
import torch.nn.functional as F

from nanochat import hardware
from nanochat.checkpoint.rng import git_commit
from nanochat.common import choose_dtype
from nanochat.dataloader import Batch
from nanochat.gpt import GPT, GPTConfig
from nanochat.hardware import attention_backends
from nanochat.loss import LossFn, chunked_loss, loss_and_grad, plain_loss
from nanochat.train import LoopState, LossScaler, Periodic, train
from nanochat.training.config import StageConfig
from nanochat.training.optimizers import build_optimizers, make_schedule


class Sizes:
    """What is measured: the real model on a GPU, a toy on a CPU."""

    def __init__(self, dry: bool):
        self.device = torch.device("cpu" if dry else "cuda")
        self.dtype = choose_dtype(self.device)[0]
        self.dry = dry
        self.depths = (1, 2) if dry else (12, 20)
        self.rows = (2, 4) if dry else (16, 32)
        if not dry and torch.cuda.get_device_properties(0).total_memory > 100e9:
            self.rows = (16, 32, 64)
        self.T = 64 if dry else 2048
        self.vocab_size = 320 if dry else 65536
        self.head_dim = 64 if dry else 128
        self.steps = 4 if dry else 8

    def config(self, depth: int, **overrides) -> GPTConfig:
        shape = {"sequence_len": self.T, **overrides}
        return GPTConfig.from_depth(depth, self.vocab_size, self.head_dim, **shape)

    def model(self, depth: int, **overrides) -> GPT:
        model = GPT(self.config(depth, **overrides)).to(self.device)
        model.compute_dtype = self.dtype
        return model

    def batch(self, rows: int, seed: int = 0) -> Batch:
        """Random ids, the same for every call."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, self.vocab_size, (rows, self.T + 1), generator=generator)
        ids = ids.to(self.device)
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), rows * self.T)

    def synchronize(self) -> None:
        hardware.synchronize(self.device)

    def peak_memory(self) -> float:
        """GB held at most since the last reset; of the process on a CPU."""
        if self.dry:
            return hardware.peak_rss() / 1e9
        return torch.cuda.max_memory_allocated() / 1e9

    def milliseconds(self, function, repeats: int = 10) -> float:
        """Median of `repeats` timed calls after two that are not."""
        times = []
        for _ in range(2 + repeats):
            self.synchronize()
            start = time.perf_counter()
            function()
            self.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
        return round(statistics.median(times[2:]), 3)


# ---------------------------------------------------------------- parts


def machine(sizes: Sizes) -> dict:
    """Versions; what matrix products and copies reach here."""
    n = 256 if sizes.dry else 8192
    a, b = (torch.randn(n, n, device=sizes.device, dtype=sizes.dtype) for _ in range(2))
    ms = sizes.milliseconds(lambda: a @ b)
    big = torch.randn(2**16 if sizes.dry else 2**30, device=sizes.device)
    other = torch.empty_like(big)
    copy_ms = sizes.milliseconds(lambda: other.copy_(big))
    found = {
        "device": hardware.device_name(sizes.device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dtype": str(sizes.dtype),
        "git_commit": git_commit(),
        f"product {n}^3 TFLOP/s": round(2 * n**3 / ms / 1e9, 1),
        "copy GB/s": round(2 * big.nbytes / copy_ms / 1e6, 1),
    }
    if not sizes.dry:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "memory GB": round(properties.total_memory / 1e9, 1),
            "multiprocessors": properties.multi_processor_count,
        }
    return found


def attention(sizes: Sizes) -> dict:
    """Forward and backward of attention by backend; what the preference chooses."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    B, H, T, K = (2, 2, 64, 64) if sizes.dry else (16, 10, 2048, 128)
    shape = (B, T, H, K)
    q, k, v = (
        torch.randn(shape, device=sizes.device, dtype=sizes.dtype, requires_grad=True)
        for _ in range(3)
    )
    grad = torch.randn(B, H, T, K, device=sizes.device, dtype=sizes.dtype)
    flops = 3.5 * 4 * B * H * T * T * K / 2  # causal

    def once() -> None:
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
        y.backward(grad)

    found = {}
    contexts = {name: (lambda b=b: sdpa_kernel([b])) for name, b in SDPBackend.__members__.items()}
    contexts["preferred"] = lambda: attention_backends(sizes.device)
    for name, context in contexts.items():
        if name in ("ERROR", "OVERRIDEABLE"):
            continue
        try:
            with context():
                ms = sizes.milliseconds(once)
                found[name] = {"ms": ms, "TFLOP/s": round(flops / ms / 1e9, 1)}
                if name == "preferred":
                    found[name]["kernels"] = top_kernels(sizes, once, 4)
        except RuntimeError as error:
            found[name] = {"error": str(error).splitlines()[0]}
    return found


def top_kernels(sizes: Sizes, function, count: int) -> dict:
    """The kernels that take most of one call: {name: ms}; "busy": the share of its time in which
    the device worked."""
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CPU if sizes.dry else ProfilerActivity.CUDA
    sizes.synchronize()
    start = time.perf_counter()
    with profile(activities=[activity]) as recorded:
        function()
        sizes.synchronize()
    wall = 1e3 * (time.perf_counter() - start)
    name = "self_cpu_time_total" if sizes.dry else "self_device_time_total"
    rows = {f"{e.key[:90]} x{e.count}": getattr(e, name) / 1e3 for e in recorded.key_averages()}
    rows = dict(sorted(rows.items(), key=lambda row: -row[1]))
    first = {key: round(ms, 3) for key, ms in list(rows.items())[:count]}
    return {"sum ms": round(sum(rows.values()), 2), "wall ms": round(wall, 2), **first}


class Watch:
    """Events of the loop that are due after some steps alone, so that the others stay in flight."""

    def __init__(self, at: dict):
        self.at = at

    def due(self, state) -> bool:
        return state.step in self.at

    def run(self, state) -> None:
        self.at[state.step]()


def steps(sizes: Sizes, depth: int, rows: int, accum: int = 1, fp8: bool = False) -> dict:
    """Whole steps through train() at one depth, rows at a time and micro-batches a step: three to
    warm up, then timed ones, one that is profiled, one in which waiting is an error."""
    device = sizes.device
    model = sizes.model(depth)
    if fp8:
        model.use_fp8()
    optimizers = list(build_optimizers(model, StageConfig()).values())
    persistent = sizes.peak_memory()
    batch = sizes.batch(rows)
    logged, marks = [], {}
    timed = max(3, sizes.steps // accum)
    state = LoopState(num_steps=3 + timed + 3)
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

    def compiled() -> None:
        marks["compile seconds"] = round(time.perf_counter() - start, 1)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def begin() -> None:
        marks["peak GB"] = round(sizes.peak_memory(), 2)
        profiler.__enter__()
        marks["profile"] = time.perf_counter()

    def end() -> None:
        sizes.synchronize()
        marks["profiled step, wall ms"] = round(
            1e3 * (time.perf_counter() - marks.pop("profile")), 1
        )
        profiler.__exit__(None, None, None)
        torch.cuda.set_sync_debug_mode("error")

    watched = {1: compiled}
    if device.type == "cuda":
        watched |= {3 + timed: begin, 4 + timed: end}
        watched |= {5 + timed: lambda: torch.cuda.set_sync_debug_mode("default")}
    start = time.perf_counter()
    with attention_backends(device):
        train(
            model,
            optimizers,
            repeat(batch),
            loss_fn=LossFn(model, compiled=True),
            schedule=make_schedule(StageConfig()),
            accum_steps=accum,
            state=state,
            log=lambda state, metrics: logged.append(metrics),
            events=(Watch(watched),),
        )
    seconds = statistics.median(m["dt"] for m in logged[3 : 3 + timed])
    tokens_per_second = accum * rows * sizes.T / seconds
    peak, source = hardware.peak_flops(device, sizes.dtype)
    found = {
        "depth": depth,
        "rows": rows,
        "micro-batches a step": accum,
        "fp8": fp8,
        "parameters": model.num_params(),
        "ms": round(1e3 * seconds, 1),
        "tokens/s": round(tokens_per_second),
        "MFU %": round(100 * tokens_per_second * model.flops_per_token() / peak, 2),
        "peak of": source,
        "persistent GB": round(persistent, 2),
        "peak GB": round(sizes.peak_memory(), 2),
        "losses": [round(m["loss"], 4) for m in logged],
    }
    if device.type == "cuda":
        kernels = {e.key[:100]: e.self_device_time_total / 1e3 for e in profiler.key_averages()}
        kernels = dict(sorted(kernels.items(), key=lambda row: -row[1]))
        found["kernels ms"] = {k: round(v, 2) for k, v in list(kernels.items())[:32]}
        found["kernels sum ms"] = round(sum(kernels.values()), 1)
    return found | marks


def optimizers(sizes: Sizes) -> dict:
    """Optimizers and loss alone, eager and compiled, at the larger depth."""
    from nanochat import muon

    depth, rows = sizes.depths[-1], sizes.rows[0]
    model = sizes.model(depth)
    made = build_optimizers(model, StageConfig())
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    found = {f"{name} ms": sizes.milliseconds(made[name].step, 4) for name in made}
    for shape in {p.shape for n, p in model.named_parameters() if ".layers." in n}:
        grads = torch.randn(len(model.model.layers), *shape, device=sizes.device)
        momenta = torch.zeros_like(grads)
        momentum = torch.tensor(0.95, device=sizes.device)
        compiled = torch.compile(muon.muon_update, dynamic=False)
        for kind, function, m in (
            ("eager", muon.muon_update, 0.95),
            ("compiled", compiled, momentum),
        ):
            arguments = grads, momenta, m, made["muon"].dtype
            ms = sizes.milliseconds(partial(function, *arguments), 4)
            found[f"muon {tuple(shape)} {kind} ms"] = ms
    grads = momenta = arguments = made = None
    model.zero_grad(set_to_none=True)
    D, V = model.config.n_embd, model.config.vocab_size
    features = torch.randn(rows * sizes.T, D, device=sizes.device, dtype=sizes.dtype)
    features.requires_grad_()
    weight = model.lm_head.weight
    targets = torch.randint(0, V, (rows * sizes.T,), device=sizes.device)
    compiled = torch.compile(loss_and_grad, dynamic=False)
    for kind, kernel in (("eager", loss_and_grad), ("compiled", compiled)):

        def once(kernel=kernel) -> None:
            chunked_loss(features, weight, targets, 15.0, kernel).backward()

        found[f"loss {kind} ms"] = sizes.milliseconds(once, 5)
    found["loss ms at the device's peak"] = round(
        6 * rows * sizes.T * D * V / hardware.peak_flops(sizes.device, sizes.dtype)[0] * 1e3, 2
    )
    some = slice(0, 1024)
    x, w = features[some].detach().double().requires_grad_(), weight.detach().double()
    w.requires_grad_()
    plain_loss(x, w, targets[some], 15.0).backward()
    weight.grad = features.grad = None
    chunked_loss(features[some], weight, targets[some], 15.0, compiled).backward()
    for name, fast, exact in (
        ("features", features.grad[some], x.grad),
        ("weight", weight.grad, w.grad),
    ):
        error = (fast.double() - exact).norm() / exact.norm()
        found[f"loss gradient by {name}, relative error"] = float(f"{error:.3g}")
    return found


def sft(sizes: Sizes) -> dict:
    """Rows of many widths at small depth: how often that compiles, and for how long."""
    model = sizes.model(2 if sizes.dry else 4)
    loss_fn = LossFn(model, compiled=True)
    widths = (16, 24, 32) if sizes.dry else (256, 512, 1024, 2048)
    found = {}
    with attention_backends(sizes.device):
        for width in widths * 2:
            ids = torch.zeros(4, width, dtype=torch.long, device=sizes.device)
            start = time.perf_counter()
            loss_fn(model, Batch(ids, ids))[0].backward()
            sizes.synchronize()
            key = f"{width} tokens, " + (
                "again" if f"{width} tokens, first s" in found else "first"
            )
            found[f"{key} s"] = round(time.perf_counter() - start, 3)
    return found


class Words:
    """Just enough of a tokenizer for the engine: ids without text, and none of them special."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def special(self, name: str) -> int:
        return self.vocab_size + len(name)

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))

    def stream_decoder(self) -> "Words":
        return self

    def push(self, token: int) -> str:
        return f" {token}"

    def flush(self) -> str:
        return ""


def engine(sizes: Sizes) -> dict:
    """Generation: graphs against eager, equal ids; streams at once; share of the bandwidth."""
    from nanochat.engine import Engine, Request, SamplingParams

    model = sizes.model(sizes.depths[-1]).eval()
    model.init_weights(1)
    for block in model.model.layers:  # an untrained model's projections are zero: all ids equal
        torch.nn.init.normal_(block.self_attn.o_proj.weight, std=0.02)
        torch.nn.init.normal_(block.mlp.fc2.weight, std=0.02)
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    count = 8 if sizes.dry else 128
    prompt = list(range(1, 33))
    bandwidth = machine(sizes)["copy GB/s"]
    found = {}
    ids = {}
    for graphs in (False, True):
        for streams in (1, 4) if sizes.dry else (1, 32, 256):
            if streams == 256 and not graphs:
                continue
            made = Engine(model, Words(model.config.vocab_size), max_batch=streams, graphs=graphs)
            options = {
                "max_tokens": count,
                "num_samples": streams,
                "stop": (),
                "max_batch": streams,
            }
            out = []
            for _ in range(2):  # the first captures
                sizes.synchronize()
                start = time.perf_counter()
                out = list(made.generate([prompt], temperature=1.0, top_k=50, **options))
                sizes.synchronize()
                seconds = time.perf_counter() - start
            name = f"{'graphs' if graphs else 'eager'}, {streams} streams"
            read = made.fast.bytes_per_token() * count / seconds / 1e9
            found[name] = {
                "tokens/s": round(streams * count / seconds, 1),
                "weights read, share of bandwidth %": round(100 * read / bandwidth, 1),
            }
            ids[graphs, streams] = sorted((s, i, t) for i, (_, s, t, _) in enumerate(out))
            if (False, streams) in ids and graphs:
                pairs = zip(ids[False, streams], ids[True, streams], strict=True)
                same = sum(a == b for a, b in pairs) / len(ids[True, streams])
                found[name]["ids equal to eager's %"] = round(100 * same, 1)
            if graphs:
                for _ in made.generate(
                    [prompt], temperature=1.0, top_k=50, **options | {"max_tokens": 2}
                ):
                    pass
                made.scheduler.grow(streams)
                for i in range(streams):
                    made.add(Request(prompt, 64, SamplingParams(1.0, 50), i, ()))
                for _ in range(8):
                    made.step()
                found[name]["kernels of a step"] = top_kernels(sizes, made.step, 14)
            del made
    return found


def float16(sizes: Sizes) -> dict:
    """Six steps in float16, with an infinite gradient forced into the third."""
    model = sizes.model(sizes.depths[0])
    model.compute_dtype = torch.float16
    scaler, state = LossScaler(), LoopState(num_steps=6)
    batch, losses, moved = sizes.batch(sizes.rows[0]), [], {}
    head = model.lm_head.weight
    handles = []

    def spoil(state) -> None:
        if state.step == 2:
            moved["before"] = {n: p.detach().clone() for n, p in model.named_parameters()}
            handles.append(head.register_hook(lambda grad: torch.full_like(grad, float("inf"))))
        if state.step == 3:
            handles.pop().remove()
            before = moved.pop("before")
            moved["moved"] = sum(not torch.equal(p, before[n]) for n, p in model.named_parameters())

    made = build_optimizers(model, StageConfig())
    compiled = not sizes.dry
    with attention_backends(sizes.device):
        train(
            model, list(made.values()), repeat(batch),
            loss_fn=LossFn(model, compiled=compiled), schedule=make_schedule(StageConfig()),
            accum_steps=1, state=state, log=lambda state, m: losses.append(round(m["loss"], 4)),
            events=(Periodic(spoil, 1),), scaler=scaler,
        )  # fmt: skip
    found = {"losses": losses, "skipped": state.skipped, "scale": scaler.scale}
    return found | {"parameters moved by the infinite step": moved["moved"]}


def deterministic(sizes: Sizes) -> dict:
    """The same four steps twice under deterministic kernels: equal bits?"""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    results = []
    for _ in range(2):
        model = sizes.model(2 if sizes.dry else 4)
        batch, state = sizes.batch(sizes.rows[0]), LoopState(num_steps=4)
        losses = []
        made = build_optimizers(model, StageConfig())
        with attention_backends(sizes.device):
            train(
                model, list(made.values()), repeat(batch),
                loss_fn=LossFn(model, compiled=True),
                schedule=make_schedule(StageConfig()), accum_steps=2, state=state,
                log=lambda state, m, losses=losses: losses.append(m["loss"]),
            )  # fmt: skip
        results.append((losses, [p.detach().clone() for p in model.parameters()]))
    (a, x), (b, y) = results
    same = all(torch.equal(p, q) for p, q in zip(x, y, strict=True))
    return {"losses equal": a == b, "weights equal": same, "losses": a}


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


def checkpoint(sizes: Sizes) -> dict:
    """Saving, loading and going on: six steps in one go against three, a save, a load, three."""
    from nanochat.checkpoint_manager import load_model, load_training_state, save_checkpoint
    from nanochat.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["the cat sat on the mat and the dog ran to it"] * 4, 320)
    os.environ["NANOCHAT_BASE_DIR"] = tempfile.mkdtemp()
    sizes.vocab_size = 320
    depth = 2 if sizes.dry else 12
    batch, found = sizes.batch(sizes.rows[0]), {}

    def go_on(model, made, state, until: int) -> list[float]:
        state.num_steps, losses = until, []
        with attention_backends(sizes.device):
            train(
                model, list(made.values()), repeat(batch),
                loss_fn=LossFn(model, compiled=False),
                schedule=make_schedule(StageConfig(warmdown=0)), accum_steps=1, state=state,
                log=lambda state, m: losses.append(m["loss"]),
            )  # fmt: skip
        return losses

    model = sizes.model(depth)
    whole = go_on(model, build_optimizers(model, StageConfig()), LoopState(), 6)
    model, state = sizes.model(depth), LoopState()
    made = build_optimizers(model, StageConfig())
    first = go_on(model, made, state, 3)
    start = time.perf_counter()
    path = save_checkpoint(
        "base", "gpu", 3, model=model, tokenizer=tokenizer, run={"config": {}},
        state={"cursor": 0}, optimizers=made,
    )  # fmt: skip
    found["save s"] = round(time.perf_counter() - start, 2)
    start = time.perf_counter()
    model, *_ = load_model(path, sizes.device, "train")
    made = build_optimizers(model, StageConfig())
    for name, tensors in load_training_state(path)[1].items():
        made[name].load_state_tensors(tensors)
    found["load s"] = round(time.perf_counter() - start, 2)
    resumed = first + go_on(model, made, state, 6)
    found |= {"GB": round(sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e9, 2)}
    return found | {"losses": whole, "resumed": resumed, "equal": whole == resumed}


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
