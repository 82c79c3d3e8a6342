"""What only a GPU can show; skipped without one. `runs/gpu_check.sh` runs these."""

from itertools import repeat

import pytest
import torch
from test_adamw import plain_update
from tiny_checkpoint import tiny_model, tiny_tokenizer

from nanochat.adamw import AdamW
from nanochat.dataloader import Batch
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.hardware import attention_backends
from nanochat.loss import LossFn, chunked_loss, loss_and_grad, plain_loss
from nanochat.muon import Muon, muon_update
from nanochat.train import LoopState, Periodic, train
from nanochat.training.config import StageConfig
from nanochat.training.optimizers import build_optimizers, make_schedule

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
cuda = torch.device("cuda")


def relative_error(found, expected) -> float:
    return float((found.double().cpu() - expected.double().cpu()).norm() / expected.double().norm())


def test_fused_adamw_is_the_pure_update():
    params = [torch.randn(37, 19, device=cuda) for _ in range(2)]
    plain = [p.clone() for p in params]
    grads = [[torch.randn_like(p) for p in params] for _ in range(3)]
    named = {str(i): torch.nn.Parameter(p) for i, p in enumerate(params)}
    optimizer = AdamW([{"params": named, "lr": 0.1}], betas=(0.9, 0.95), weight_decay=0.1)
    moments = [[torch.zeros_like(p) for p in plain] for _ in range(2)]
    for step, some in enumerate(grads, 1):
        for p, grad in zip(named.values(), some, strict=True):
            p.grad = grad.clone()
        optimizer.step()
        plain_update(plain, some, *moments, step, 0.1, (0.9, 0.95), 1e-10, 0.1)
    for p, q in zip(named.values(), plain, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 256, 64), (2, 64, 256)])
def test_muon_is_the_cpus(shape):
    grads = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    on_cpu = muon_update(grads, torch.zeros(shape), 0.95, torch.float32)
    on_gpu = muon_update(grads.to(cuda), torch.zeros(shape, device=cuda), 0.95, torch.bfloat16)
    assert relative_error(on_gpu, on_cpu) < 0.03
    params = {f"p{i}": torch.nn.Parameter(torch.zeros(shape[1:], device=cuda)) for i in range(3)}
    muon = Muon([{"params": params, "lr": 1.0}])
    for p, grad in zip(params.values(), grads, strict=False):
        p.grad = grad.to(cuda)
    for p in params.values():
        p.grad = torch.ones_like(p) if p.grad is None else p.grad
    muon.step()
    assert all(torch.isfinite(p).all() for p in params.values())


@pytest.mark.parametrize("rows, V", [(100, 320), (1000, 4096), (33, 65536)])
@pytest.mark.parametrize("compiled", [False, True])
def test_chunked_loss_in_bfloat16(rows, V, compiled):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, 128, generator=generator)
    weight = torch.randn(V, 128, generator=generator) * 0.1
    targets = torch.randint(-1, V, (rows,), generator=generator)
    x, w = features.double().requires_grad_(), weight.double().requires_grad_()
    exact = plain_loss(x, w, targets, 15.0)
    exact.backward()
    fast_x = features.to(cuda, torch.bfloat16).requires_grad_()
    fast_w = weight.to(cuda).requires_grad_()
    kernel = torch.compile(loss_and_grad, dynamic=False) if compiled else loss_and_grad
    loss = chunked_loss(fast_x, fast_w, targets.to(cuda), 15.0, kernel)
    loss.backward()
    assert float(loss) == pytest.approx(float(exact), rel=1e-2)
    assert relative_error(fast_x.grad, x.grad) < 0.02
    assert relative_error(fast_w.grad, w.grad) < 0.02


def small_model() -> GPT:
    model = GPT(GPTConfig.from_depth(2, 512, sequence_len=256)).to(cuda)
    model.compute_dtype = torch.bfloat16
    return model


def a_batch(rows: int = 4) -> Batch:
    ids = torch.randint(0, 512, (rows, 257), generator=torch.Generator().manual_seed(0)).to(cuda)
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), rows * 256)


def test_no_step_waits_for_the_device():
    def watch(state) -> None:
        torch.cuda.set_sync_debug_mode("error" if 3 <= state.step < 6 else "default")

    model, state, batch = small_model(), LoopState(num_steps=8), a_batch()
    losses = []
    with attention_backends(cuda):
        train(
            model,
            list(build_optimizers(model, StageConfig()).values()),
            repeat([batch, batch]),
            loss_fn=LossFn(model, compiled=True),
            schedule=make_schedule(StageConfig()),
            state=state,
            log=lambda state, metrics: losses.append(metrics["loss"]),
            events=(Periodic(watch, 1),),
        )
    assert losses[-1] < losses[0] - 0.5 and state.seconds > 0


def test_compiled_gradients_are_the_plain_ones():
    model, batch = small_model(), a_batch()
    torch.nn.init.normal_(model.lm_head.weight, std=0.05)
    for block in model.model.layers:
        torch.nn.init.normal_(block.self_attn.o_proj.weight, std=0.05)
        torch.nn.init.normal_(block.mlp.fc2.weight, std=0.05)
    with attention_backends(cuda):
        LossFn(model, compiled=True)(model, batch).backward()
    fast = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.compute_dtype = torch.float32
    x = model.features(batch.inputs).flatten(0, 1)
    plain_loss(x, model.lm_head.weight, batch.targets.flatten(), 15.0).backward()
    for name, p in model.named_parameters():
        assert relative_error(fast[name], p.grad) < 0.05, name


@pytest.mark.parametrize("temperature, top_k, top_p", [(0.0, None, None), (1.0, 20, 0.9)])
def test_graphs_give_the_ids_of_eager_steps(temperature, top_k, top_p):
    model, tokenizer = tiny_model().to(cuda).eval(), tiny_tokenizer()
    prompts = [[tokenizer.bos, *tokenizer.encode_ordinary(t)] for t in ("the cat", "dog", "a mat")]
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=20, num_samples=3)
    ids = [
        sorted(Engine(model, tokenizer, graphs=graphs).generate(prompts, **options))
        for graphs in (False, True)
    ]
    same = sum(a == b for a, b in zip(*ids, strict=False))
    assert len(ids[0]) > 50 and same == len(ids[0]) == len(ids[1])


def test_the_engine_follows_the_naive_generator():
    model, tokenizer = tiny_model().to(cuda).eval(), tiny_tokenizer()
    prompt = [tokenizer.bos, *tokenizer.encode_ordinary("the cat sat")]
    expected = list(model.generate(prompt, 20, temperature=0))
    found = [
        t
        for *_, t, _ in Engine(model, tokenizer).generate(
            [prompt], max_tokens=20, temperature=0, stop=()
        )
    ]
    assert found[: len(expected)] == expected
