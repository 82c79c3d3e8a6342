"""Parity of a GGUF file: does llama.cpp compute and tokenize what the checkpoint does?

Needs the package llama-cpp-python. The reference is the native model in float32, with the weights
that the file holds: rounded, or quantized and back.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nanochat.bpe.pieces import as_bytes
from nanochat.checkpoint_manager import load_checkpoint
from nanochat.conversation import plain_chat_template, render
from nanochat.gpt import GPT
from nanochat.publishing import parity_texts
from nanochat.publishing.gguf import rounded_weights
from nanochat.publishing.parity import Checks, ParityError, summary

# (the least share of positions where the likeliest token agrees, the largest mean KL divergence in
# nats). For bf16 and Q8_0 llama.cpp rounds the activations, too, to 8 significant bits.
BOUNDS = {"f16": (0.995, 1e-3), "bf16": (0.985, 2e-3), "q8_0": (0.97, 1e-2)}
MOST_TOKENS = 256  # of a text


def prove(path: Path, checkpoint: Path, kind: str, drop_softcap: bool = False) -> dict:
    """The report on the file; ParityError if ids differ, or probabilities by more than BOUNDS."""
    import llama_cpp
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    weights, config, tokenizer, _ = load_checkpoint(checkpoint)
    dropped = config.logit_softcap if drop_softcap else None
    if drop_softcap:
        config = replace(config, logit_softcap=None)
    # subtle: folded, the embedding of a tied model is no longer its head
    config = replace(config, tie_word_embeddings=False)
    native = GPT.from_weights(config, rounded_weights(weights, config, kind))
    del weights
    native.compute_dtype = torch.float32
    context = min(MOST_TOKENS, config.sequence_len)
    llama = llama_cpp.Llama(
        str(path), n_ctx=context, n_batch=context, logits_all=True, verbose=False, n_gpu_layers=0
    )
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(plain_chat_template())
    checks, rows = Checks(), []
    for text in parity_texts.texts():
        expected = tokenizer.encode_ordinary(text)
        found = llama.tokenize(as_bytes(text), add_bos=False, special=False)
        checks.same("ids", repr(text), found, expected)
        rows.append([tokenizer.bos, *expected][:context])
    for chat in parity_texts.chats():
        expected, _ = render(chat, tokenizer)
        rendered = template.render(messages=chat["messages"], add_generation_prompt=False)
        found = llama.tokenize(rendered.encode(), add_bos=False, special=True)
        checks.same("chats", str(chat), found, expected)
        rows.append(expected[:context])
    agreement, divergence, positions = compare_logits(llama, native, rows)
    report = {"type": kind, "softcap_dropped": dropped, **checks.report()}
    report |= {"positions": positions, "likeliest_agrees": agreement, "mean_kl_nats": divergence}
    report["llama_cpp_python"] = llama_cpp.__version__
    least, most = BOUNDS[kind]
    report["passed"] = report["passed"] and agreement >= least and divergence <= most
    if not report["passed"]:
        raise ParityError(
            f"{path} is not the model in {checkpoint}:\n{summary(report)}\n{probabilities(report)} "
            f"(expected at least {least:.1%} and at most {most:g})"
        )
    return report


def probabilities(report: dict) -> str:
    return (
        f"  the likeliest token agrees at {report['likeliest_agrees']:.2%} of "
        f"{report['positions']:,} positions, mean KL divergence {report['mean_kl_nats']:.1e} nats"
    )


@torch.inference_mode()
def compare_logits(llama, native: GPT, rows: list[list[int]]) -> tuple[float, float, int]:
    """(share of positions where the likeliest token agrees, mean KL(native || llama.cpp) in nats,
    positions)."""
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
