"""A checkpoint small enough to save a hundred times in a test."""

import torch

from nanochat.checkpoint_manager import prepare_checkpoint
from nanochat.common import on_rank0
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import Tokenizer


def tiny_tokenizer(text="the cat sat on the mat and the dog ran to the cat"):
    return Tokenizer.train([text] * 4, vocab_size=320)


def tiny_model(**overrides):
    """Two layers of width 128, all weights random (a new GPT has projections that are zero)."""
    shape = {"n_layer": 2, "n_embd": 128, "n_head": 2, "n_kv_head": 2, "head_dim": 64}
    model = GPT(GPTConfig(**{**shape, "vocab_size": 320, "sequence_len": 64, **overrides}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def save(step=1, stage="base", tag="tiny", model=None, tokenizer=None, **arguments):
    arguments = {"run": {"config": {"depth": 2}}, "state": {"cursor": 8 * step}, **arguments}
    model, tokenizer = model or tiny_model(), tokenizer or tiny_tokenizer()
    return on_rank0(
        prepare_checkpoint(stage, tag, step, model=model, tokenizer=tokenizer, **arguments)
    )
