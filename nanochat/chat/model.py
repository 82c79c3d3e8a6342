"""Which model chats, and with what tool: the flags that chat_cli and chat_web share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import tyro

from nanochat.checkpoint_manager import load_model
from nanochat.common import compute_init
from nanochat.engine import Engine
from nanochat.tools.sandbox import open_tool


@dataclass(frozen=True)
class ModelConfig:
    source: Annotated[str, tyro.conf.arg(aliases=["-i"])] = "sft"
    """Stage of the model (base, mid, sft, rl), or a checkpoint's folder."""
    model_tag: str | None = None
    """Run to take; default: the newest."""
    step: int | None = None
    """Its step; default: the newest."""
    tool: str = "calculator"
    """What the model's calls are given to: calculator, or python (sandboxed)."""
    int8: bool = False
    """On a CPU: weights of 8 bits instead of 16, which are read in half the time."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""


@contextmanager
def open_engine(config: ModelConfig) -> Iterator[tuple[Engine, dict]]:
    """The engine, whose tool is open until the end of `with`, and what load_model knows of it."""
    *_, device = compute_init(config.device_type)
    wanted = config.model_tag, config.step
    model, tokenizer, meta = load_model(config.source, device, "eval", *wanted)
    with open_tool(config.tool) as tool:
        yield Engine(model, tokenizer, tool, weights="int8" if config.int8 else "bfloat16"), meta
