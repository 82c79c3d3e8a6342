"""Talk to the model in the terminal, or ask one question.

    python -m scripts.chat_cli
    python -m scripts.chat_cli -p "What is the capital of France?"
    echo "What is 37 * 12?" | python -m scripts.chat_cli -p -

In a conversation /help lists the commands.
"""

import sys
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from typing import Annotated

import tyro

from nanochat.chat.limits import Limits
from nanochat.chat.model import ModelConfig, open_engine
from nanochat.chat.terminal import Chat, converse
from nanochat.common import ConfigError
from nanochat.configurator import cli
from nanochat.inference.sampling import SamplingParams


@dataclass(frozen=True)
class Config(ModelConfig):
    prompt: Annotated[str | None, tyro.conf.arg(aliases=["-p"])] = None
    """Ask this one question, print the answer and leave; - reads the question from a pipe."""
    temperature: float | None = None
    """Sampling temperature; default: the server's in a conversation, 0 (the likeliest) with -p."""
    top_k: int | None = 50
    """Choose among this many likeliest tokens."""
    top_p: float | None = None
    """Choose among the likeliest tokens that together have this probability."""
    max_tokens: int = 256
    """Longest answer."""
    seed: int = 42
    """The same seed and the same words give the same answers."""


def main(config: Config) -> None:
    default = Limits.temperature if config.prompt is None else 0.0
    temperature = default if config.temperature is None else config.temperature
    params = SamplingParams(temperature, config.top_k, config.top_p, config.seed)
    with ExitStack() as stack:
        with redirect_stdout(sys.stderr):  # so that the answer of -p is alone on stdout
            engine, meta = stack.enter_context(open_engine(config))
        if config.prompt is not None:
            question = sys.stdin.read().strip() if config.prompt == "-" else config.prompt
            if not question.strip():
                raise ConfigError("the question is empty; write one after -p, or pipe it to -p -")
            Chat(engine, params, config.max_tokens).ask(question)
            return
        name = f"{meta['stage']} {meta['tag']}, step {meta['step']:,}"
        print(f"{name}\n/help lists the commands", file=sys.stderr)
        converse(engine, params, config.max_tokens)


if __name__ == "__main__":
    cli(main, Config)
