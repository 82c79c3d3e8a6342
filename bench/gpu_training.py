"""Parts of bench/gpu_check.py: whole steps, fine-tuning's widths, float16, resuming."""

import os
import statistics
import tempfile
import time
from itertools import repeat

import torch

from bench.gpu_sizes import Sizes
from nanochat import hardware
from nanochat.dataloader import Batch
from nanochat.hardware import attention_backends
from nanochat.loss import LossFn
from nanochat.train import LoopState, LossScaler, Periodic, train
from nanochat.training.config import StageConfig
from nanochat.training.optimizers import build_optimizers, make_schedule


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
            repeat([batch] * accum),
            loss_fn=LossFn(model, compiled=True),
            schedule=make_schedule(StageConfig()),
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
            loss_fn(model, Batch(ids, ids)).backward()
            sizes.synchronize()
            key = f"{width} tokens, " + (
                "again" if f"{width} tokens, first s" in found else "first"
            )
            found[f"{key} s"] = round(time.perf_counter() - start, 3)
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
            model, list(made.values()), repeat([batch]),
            loss_fn=LossFn(model, compiled=compiled), schedule=make_schedule(StageConfig()),
            state=state, log=lambda state, m: losses.append(round(m["loss"], 4)),
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
                model, list(made.values()), repeat([batch, batch]),
                loss_fn=LossFn(model, compiled=True),
                schedule=make_schedule(StageConfig()), state=state,
                log=lambda state, m, losses=losses: losses.append(m["loss"]),
            )  # fmt: skip
        results.append((losses, [p.detach().clone() for p in model.parameters()]))
    (a, x), (b, y) = results
    same = all(torch.equal(p, q) for p, q in zip(x, y, strict=True))
    return {"losses equal": a == b, "weights equal": same, "losses": a}


def checkpoint(sizes: Sizes) -> dict:
    """Saving, loading and going on: six steps in one go against three, a save, a load, three."""
    from nanochat.checkpoint_manager import load_model, load_training_state, prepare_checkpoint
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
                model, list(made.values()), repeat([batch]),
                loss_fn=LossFn(model, compiled=False),
                schedule=make_schedule(StageConfig(warmdown=0)), state=state,
                log=lambda state, m: losses.append(m["loss"]),
            )  # fmt: skip
        return losses

    model = sizes.model(depth)
    whole = go_on(model, build_optimizers(model, StageConfig()), LoopState(), 6)
    model, state = sizes.model(depth), LoopState()
    made = build_optimizers(model, StageConfig())
    first = go_on(model, made, state, 3)
    start = time.perf_counter()
    path = prepare_checkpoint(
        "base", "gpu", 3, model=model, tokenizer=tokenizer, run={"config": {}},
        state={"cursor": 0}, optimizers={name: o.state_tensors() for name, o in made.items()},
    )()  # fmt: skip
    found["save s"] = round(time.perf_counter() - start, 2)
    start = time.perf_counter()
    model, *_ = load_model(path, sizes.device, "train")
    made = build_optimizers(model, StageConfig())
    for name, tensors in load_training_state(path)[2].items():
        made[name].load_state_tensors(tensors)
    found["load s"] = round(time.perf_counter() - start, 2)
    resumed = first + go_on(model, made, state, 6)
    found |= {"GB": round(sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e9, 2)}
    return found | {"losses": whole, "resumed": resumed, "equal": whole == resumed}
