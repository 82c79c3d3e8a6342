"""Parts of bench/gpu_check.py: the machine, attention, optimizers and loss, decoding."""

import platform
import time
from functools import partial

import torch
import torch.nn.functional as F

from bench.gpu_sizes import Sizes
from nanochat import hardware
from nanochat.checkpoint.rng import git_commit
from nanochat.hardware import attention_backends
from nanochat.loss import chunked_loss, loss_and_grad, plain_loss
from nanochat.training.config import StageConfig
from nanochat.training.optimizers import build_optimizers


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


class Words:
    """Just enough of a tokenizer for the engine: ids without text, and none of them special."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def special(self, name: str) -> int:
        return self.vocab_size + len(name)

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))

    def decode_bytes(self, ids) -> bytes:
        return self.decode(ids).encode()


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
            weights = model.num_params() - model.model.embed_tokens.weight.numel()
            read = weights * made.fused.dtype.itemsize * count / seconds / 1e9
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
