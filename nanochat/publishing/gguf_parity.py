"""The gate of GGUF: does llama.cpp compute and tokenize what the checkpoint does?

Needs the package llama-cpp-python. Reference is the native model, in float32, with the weights as
the file holds them: rounded, or quantised and back.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nanochat.checkpoint_manager import load_checkpoint
from nanochat.common import CheckpointError
from nanochat.conversation import CHAT_TEMPLATE, render
from nanochat.gpt import GPT
from nanochat.publishing import parity_texts
from nanochat.publishing.gguf import rounded_weights
from nanochat.publishing.parity import Check

# (share of places where the likeliest token agrees, at least; mean KL divergence in nats, at most).
# For bf16 and Q8_0 llama.cpp rounds the activations, too, to 8 significant bits.
BOUNDS = {"f16": (0.995, 1e-3), "bf16": (0.985, 2e-3), "q8_0": (0.97, 1e-2)}
MOST_TOKENS = 256  # of a text


def prove(path: Path, checkpoint: Path, kind: str, drop_softcap: bool = False) -> dict:
    """Compares the file with its checkpoint; returns the figures.

    Raises CheckpointError with the first differences where ids differ, the likeliest token agrees
    too seldom or the mean KL divergence is too large (BOUNDS).
    """
    import llama_cpp

    weights, config, tokenizer, _ = load_checkpoint(checkpoint)
    dropped = config.logit_softcap if drop_softcap else None
    if drop_softcap:
        config = replace(config, logit_softcap=None)
    native = GPT.from_weights(config, rounded_weights(weights, config, kind))
    del weights
    native.compute_dtype = torch.float32
    context = min(MOST_TOKENS, config.sequence_len)
    llama = llama_cpp.Llama(
        str(path), n_ctx=context, n_batch=context, logits_all=True, verbose=False, n_gpu_layers=0
    )
    checks = {"ids": Check(), "chats": Check()}
    rows = []
    for text in parity_texts.texts():
        expected = tokenizer.encode_ordinary(text)
        found = llama.tokenize(as_bytes(text), add_bos=False, special=False)
        checks["ids"].same(repr(text), found, expected)
        rows.append([tokenizer.bos, *expected][:context])
    for chat in parity_texts.chats():
        expected, _ = render(chat, tokenizer)
        found = llama.tokenize(rendered(chat).encode(), add_bos=False, special=True)
        checks["chats"].same(json.dumps(chat), found, expected)
        rows.append(expected[:context])
    agreement, divergence, positions = compare_logits(llama, native, rows)
    report = {
        "type": kind,
        "softcap_dropped": dropped,
        "checks": {
            k: {"compared": c.compared, "different": c.different} for k, c in checks.items()
        },
        "positions": positions,
        "likeliest_agrees": agreement,
        "mean_kl_nats": divergence,
        "llama_cpp_python": llama_cpp.__version__,
    }
    examples = [example for check in checks.values() for example in check.examples]
    least, most = BOUNDS[kind]
    if examples or agreement < least or not divergence <= most:
        raise CheckpointError(
            f"{path} is not the model in {checkpoint}: the likeliest token agrees at "
            f"{agreement:.2%} of {positions:,} places (at least {least:.1%} are asked), mean KL "
            f"divergence {divergence:.2e} nats (at most {most:g}); "
            + ("; ".join(examples) or "all ids agree")
        )
    return report


def as_bytes(text: str) -> bytes:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def rendered(chat: dict) -> str:
    """A conversation as text by the template that stands in the file."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        CHAT_TEMPLATE
    )
    return template.render(messages=chat["messages"], add_generation_prompt=False)


@torch.inference_mode()
def compare_logits(llama, native: GPT, rows: list[list[int]]) -> tuple[float, float, int]:
    """(share of places where the likeliest token agrees, mean KL(native || llama.cpp) in nats,
    places)."""
    agreeing, divergence, positions = 0, 0.0, 0
    for row in rows:
        llama.reset()
        llama.eval(row)
        found = torch.from_numpy(np.array(llama.scores[: len(row)]))  # (T, V)
        expected = native(torch.tensor([row]))[0]  # (T, V)
        agreeing += int((found.argmax(-1) == expected.argmax(-1)).sum())
        p, q = expected.log_softmax(-1), found.float().log_softmax(-1)
        divergence += float((p.exp() * (p - q)).sum(-1).double().sum())
        positions += len(row)
    return agreeing / positions, divergence / positions, positions
