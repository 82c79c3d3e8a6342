"""Talk to the model in the terminal, or ask one question.

    python -m scripts.chat_cli
    python -m scripts.chat_cli -p "What is the capital of France?"

In a conversation /help lists the commands.
"""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Annotated

import tyro

from nanochat.checkpoint_manager import load_model
from nanochat.common import ConfigError, compute_init, write_atomic
from nanochat.configurator import cli
from nanochat.engine import AnswerReader, Engine, fit_context

HELP = "/clear forgets the conversation, /save FILE writes it as JSON, /help, /quit (or Ctrl-D)"


@dataclass(frozen=True)
class Config:
    prompt: Annotated[str | None, tyro.conf.arg(aliases=["-p"])] = None
    """Ask this one question, print the answer and leave."""
    source: Annotated[str, tyro.conf.arg(aliases=["-i"])] = "sft"
    """Stage of the model (base, mid, sft, rl), or a checkpoint's folder."""
    model_tag: str | None = None
    """Run to take; default: the newest."""
    step: int | None = None
    """Its step; default: the newest."""
    temperature: float | None = None
    """How freely words are chosen; default: 0.6 in a conversation, 0 (the likeliest) with -p."""
    top_k: int | None = 50
    """Choose among this many likeliest tokens."""
    top_p: float | None = None
    """Choose among the likeliest tokens that together have this probability."""
    max_tokens: int = 256
    """Longest answer."""
    seed: int = 42
    """The same seed and the same words give the same answers."""
    device_type: str = "auto"
    """auto, cuda, mps or cpu."""


def answer(engine: Engine, prompt: list[int], config: Config, seed: int) -> list[dict]:
    """Prints the answer as it comes, tool calls as `[python] 37*12 = 444`; returns its parts.
    Ctrl-C ends it early."""
    dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    shown = {"python": f"{dim}[python] ", "python_output": f"{dim} = "}
    default = 0.6 if config.prompt is None else 0.0
    temperature = default if config.temperature is None else config.temperature
    options = {"temperature": temperature, "top_k": config.top_k, "top_p": config.top_p}
    options |= {"max_tokens": config.max_tokens, "seed": seed}
    reader = AnswerReader(engine.tokenizer)
    try:
        for _, _, token, _ in engine.generate([prompt], **options):
            before = reader.kind
            print(reader.push(token), end="")
            if reader.kind != before:
                line_ends = "\n" if before == "python_output" else ""
                print(shown.get(reader.kind, plain + line_ends), end="")
            sys.stdout.flush()
        print(reader.flush(), end="")
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    print(plain, flush=True)
    return reader.parts


def converse(engine: Engine, config: Config) -> None:
    """Reads questions and answers them until /quit, Ctrl-D or Ctrl-C."""
    messages: list[dict] = []
    seed = config.seed
    print(HELP)
    while True:
        try:
            text = input("\nyou: ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        command, _, argument = text.partition(" ")
        question = {"role": "user", "content": text}
        if command == "/quit":
            return
        elif command == "/clear":
            messages = []
            print("forgotten")
        elif command == "/save" and argument:
            try:
                conversation = json.dumps({"messages": messages}, ensure_ascii=False)
                write_atomic(argument, conversation + "\n")
                print(f"saved {len(messages)} messages in {argument}")
            except OSError as error:
                print(f"not saved: {error}")
        elif text.startswith("/"):
            print(HELP)
        elif text:
            try:
                prompt, first = fit_context([*messages, question], engine)
            except ConfigError as error:
                print(error)
                continue
            if first:
                print(f"(the context is full: the first {first // 2} turns are no longer seen)")
            print("nanochat: ", end="", flush=True)
            said = answer(engine, prompt, config, seed)
            messages += [question, {"role": "assistant", "content": said}]
            seed += 1  # else a question asked again would meet the same noise


def main(config: Config) -> None:
    with redirect_stdout(sys.stderr):  # so that the answer of -p is alone on stdout
        *_, device = compute_init(config.device_type)
    wanted = config.model_tag, config.step
    model, tokenizer, meta = load_model(config.source, device, "eval", *wanted)
    engine = Engine(model, tokenizer)
    if config.prompt is not None:
        prompt, _ = fit_context([{"role": "user", "content": config.prompt}], engine)
        answer(engine, prompt, config, config.seed)
        return
    print(f"{meta['stage']} {meta['tag']}, step {meta['step']:,}")
    converse(engine, config)


if __name__ == "__main__":
    cli(main, Config)
