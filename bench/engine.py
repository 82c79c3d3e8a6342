"""Speed of the engine beside Hugging Face's generate and llama.cpp, on the same random weights.

    python -m bench.engine                            depth 12 on whatever device is there
    python -m bench.engine --depths 4 8 12 20 --vocab-size 16384 --streams 1 8 32

Hugging Face reads the weights from a checkpoint folder (needs the export extra); llama.cpp reads
GGUF files made of it, where llama-cpp-python is installed (`pip install llama-cpp-python` compiles
it, for some minutes). All take turns. Prints time to first token; tokens/s while tokens come, and
the share of the memory bandwidth that the bytes read (weights but the embedding table, and cache)
reach; tokens/s of a long prompt, and the share of PyTorch's rate of matrix products that its own
reach. Bandwidth and products are measured in the same turns. Writes
bench/results/engine-<machine>.json, on a CPU engine-<instructions>-<machine>.json.
"""

import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from bench.engine_programs import Load, Measure, hugging_face, llama_cpp, run_engine
from bench.record import write_record
from nanochat.checkpoint_manager import prepare_checkpoint
from nanochat.common import choose_dtype, compute_init
from nanochat.configurator import cli
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.hardware import device_name, synchronize
from nanochat.tokenizer import Tokenizer


@dataclass(frozen=True)
class Config:
    depths: tuple[int, ...] = (12,)
    """Layers; the width follows."""
    vocab_size: int = 65536
    """Ids."""
    streams: tuple[int, ...] = (1, 8, 32)
    """Answers that are made at once."""
    weights: tuple[str, ...] = ("float32", "bfloat16", "int8")
    """On a CPU: what the engine keeps its matrices as."""
    hf_dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """Those of Hugging Face's generate; none alone leaves it out."""
    llama_types: tuple[str, ...] = ("f16", "q8_0")
    """Those of llama.cpp; none alone leaves it out."""
    prompt_tokens: int = 64
    """Tokens of every answer's prompt."""
    long_prompt: int = 512
    """Tokens of the prompt whose reading is measured alone."""
    new_tokens: int = 64
    """Tokens of every answer."""
    temperature: float = 0.8
    """0 takes the likeliest token."""
    top_k: int = 50
    """Choose among this many."""
    repeats: int = 3
    """Turns; tables show medians."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""


# ---------------------------------------------------------------- what is measured

# int8: and a scale for 64 of them
BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1 + 4 / 64}


def random_model(depth: int, vocab_size: int, device: torch.device) -> GPT:
    """Weights that make no token certain, drawn once."""
    # llama.cpp has no soft-cap
    model = GPT(GPTConfig.from_depth(depth, vocab_size, logit_softcap=None))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02, generator=generator)
    model = model.to(device).requires_grad_(False)
    model.compute_dtype = choose_dtype(device)[0]
    return model


def fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that the fastest of three calls takes."""
    seconds = []
    for _ in range(3):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def flops_per_second(model: GPT, rows: int) -> float:
    """Of PyTorch's product of `rows` rows with a matrix as large as fc1, in compute dtype."""
    D, options = model.config.n_embd, {"dtype": model.compute_dtype, "device": model.device}
    x, weight = torch.ones(rows, D, **options), torch.ones(D, 4 * D, **options)
    return 2 * rows * 4 * D * D / fastest(lambda: x @ weight, model.device)


def flops_of_prompt(model: GPT, tokens: int) -> float:
    """Of a prompt's products with matrices; the head is needed once, attention is left out."""
    head = model.lm_head.weight.numel()
    return (
        2 * tokens * (model.num_params() - model.model.embed_tokens.weight.numel() - head)
        + 2 * head
    )


def bytes_per_step(engine: Engine, config: Config, streams: int) -> float:
    """What a step reads: the weights, and the cache of every stream, half of its answer long."""
    c, model = engine.model.config, engine.model
    kind = engine.decoder.weights if engine.decoder else str(engine.fused.dtype).split(".")[-1]
    weights = model.num_params() - model.model.embed_tokens.weight.numel()
    of_token = 2 * c.n_layer * c.n_kv_head * c.head_dim * engine.cache.dtype.itemsize
    cached = streams * (config.prompt_tokens + config.new_tokens / 2) * of_token
    return BYTES_PER_WEIGHT[kind] * weights + cached


# ---------------------------------------------------------------- turns and tables


def programs_of(
    config: Config, model: GPT, device: torch.device, folder: str
) -> tuple[dict[str, Measure], dict[str, Engine]]:
    """What is measured, by its name; the engines among them."""
    tokenizer = Tokenizer.train(["two programs take turns"], config.vocab_size)
    with patch.dict(os.environ, NANOCHAT_BASE_DIR=folder):
        parts = {"model": model, "tokenizer": tokenizer, "run": {"config": {}}, "state": {}}
        checkpoint = prepare_checkpoint("base", "bench", 0, **parts)()
    programs, engines = {}, {}
    for weights in config.weights if device.type == "cpu" else (None,):
        name = f"nanochat {weights}" if weights else "nanochat"
        engine = Engine(model, tokenizer, max_batch=max(config.streams), weights=weights)
        engines[name], programs[name] = engine, partial(run_engine, engine)
    for dtype in filter("none".__ne__, config.hf_dtypes):
        measure = hugging_face(checkpoint, dtype, tokenizer.bos, device)
        programs[f"Hugging Face generate {dtype}"] = measure
    if importlib.util.find_spec("llama_cpp") is None:
        print("llama.cpp: left out; pip install llama-cpp-python")
        return programs, engines
    from nanochat.publishing.gguf import write_gguf

    for kind in filter("none".__ne__, config.llama_types):
        path = Path(folder) / f"{kind}.gguf"
        write_gguf(checkpoint, path, kind)
        programs[f"llama.cpp {kind}"] = llama_cpp(path)
    return programs, engines


def measure_depth(config: Config, depth: int, device: torch.device) -> dict:
    """A row for each program and number of streams; bandwidth and products of every turn."""
    model = random_model(depth, config.vocab_size, device)
    with tempfile.TemporaryDirectory() as folder:
        programs, engines = programs_of(config, model, device, folder)
    choice = {name: getattr(config, name) for name in ("vocab_size", "temperature", "top_k")}
    loads = {n: Load(n, config.prompt_tokens, config.new_tokens, **choice) for n in config.streams}
    prompt = Load(1, config.long_prompt, 2, **choice)
    buffer = torch.ones(2 * model.num_params() // 4, device=device)
    speeds = {(name, n): [] for n in config.streams for name in programs}
    reading: dict[str, list[float]] = {name: [] for name in programs}
    bandwidths, products = [], []
    for turn in range(config.repeats + 1):  # the first warms up, and is not counted
        bytes_per_second = buffer.nbytes / fastest(buffer.sum, device)
        rate = flops_per_second(model, config.long_prompt)
        found = {key: programs[key[0]](loads[key[1]]) for key in speeds}
        read = {name: programs[name](prompt)[0] for name in programs}
        for (name, n), (_, speed) in found.items():
            print(
                f"turn {turn}: {name}, depth {depth}, {n} streams: {speed:,.1f} tokens/s",
                flush=True,
            )
        if turn:
            bandwidths.append(bytes_per_second)
            products.append(rate)
            for key in speeds:
                speeds[key].append(found[key])
            for name in programs:
                reading[name].append(read[name])
    rows, median = [], statistics.median
    for (program, n), all_speeds in speeds.items():
        first, speed = (median(part) for part in zip(*all_speeds, strict=True))
        row = {"depth": depth, "program": program, "streams": n, "seconds_to_first_token": first}
        row |= {"tokens_per_second": speed, "all": all_speeds}
        if program in engines:
            read = speed / n * bytes_per_step(engines[program], config, n)
            row["bandwidth_share"] = read / median(bandwidths)
        if n == 1:
            row["seconds_of_prompt"] = reading[program]
            done = flops_of_prompt(model, config.long_prompt) / median(reading[program])
            row["products_share"] = done / median(products)
        rows.append(row)
    rates = {"bandwidth_bytes_per_second": bandwidths, "products_flops_per_second": products}
    return rates | {"depth": depth, "results": rows}


def print_table(found: list[dict], config: Config, title: str) -> None:
    """Each program's tokens/s also as a multiple of its own with one stream."""
    columns = ("depth", "program", "streams", "first token", "tokens/s", "of bandwidth",
               "of one stream", f"prompt of {config.long_prompt}", "of products")  # fmt: skip
    table = Table(*columns, title=title)
    rows = [row for one in found for row in one["results"]]
    ones = {(r["depth"], r["program"]): r["tokens_per_second"] for r in rows if r["streams"] == 1}
    for r in rows:
        speed, one = r["tokens_per_second"], ones.get((r["depth"], r["program"]))
        cells = [str(r["depth"]), r["program"], str(r["streams"])]
        cells += [f"{r['seconds_to_first_token']:.3f} s", f"{speed:,.1f}"]
        cells += [f"{r['bandwidth_share']:.0%}" if "bandwidth_share" in r else ""]
        cells += [f"{speed / one:.1f}x" if one else ""]
        if "seconds_of_prompt" in r:
            seconds = statistics.median(r["seconds_of_prompt"])
            cells += [f"{config.long_prompt / seconds:,.0f} tokens/s", f"{r['products_share']:.0%}"]
        table.add_row(*cells)
    Console(width=120).print(table)  # a file's would cut the names


def main(config: Config) -> None:
    device = compute_init(config.device_type)[-1]
    found = [measure_depth(config, depth, device) for depth in config.depths]
    dtype = str(choose_dtype(device)[0]).removeprefix("torch.")
    print_table(found, config, f"generation, {device_name(device)}, {dtype}")
    for one in found:
        read, done = (statistics.median(one[k]) / 1e9 for k in list(one)[:2])
        print(f"depth {one['depth']}: memory bandwidth {read:.1f} GB/s (reading a buffer as large "
              f"as the weights), products {done:.1f} GFLOP/s; medians of turns")  # fmt: skip
    processor = torch.backends.cpu.get_cpu_capability().lower()
    name = f"engine-{processor}" if device.type == "cpu" else "engine"
    write_record(name, config, device, {"compute_dtype": dtype, "depths": found})


if __name__ == "__main__":
    cli(main, Config)
