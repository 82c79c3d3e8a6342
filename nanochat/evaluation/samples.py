"""Samples of a base model: what it says after some beginnings, and after nothing."""

import json
from pathlib import Path

from nanochat.common import print0, rank_and_world
from nanochat.files import write_atomic

PROMPTS = (
    "The capital of France is",
    "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be",
    "The opposite of hot is",
    "The planets of the solar system are:",
    "My favorite color is",
    "If 5*x + 3 = 13, then x is",
)


def write_samples(engine, num_tokens: int, seed: int, path: Path) -> None:
    """Writes the likeliest continuation of each of PROMPTS, of `num_tokens`, and three unprompted
    samples, four times as long; prints them too."""
    tokenizer = engine.tokenizer
    prompts = [[tokenizer.bos, *tokenizer.encode_ordinary(text)] for text in PROMPTS]
    completions = engine.complete(prompts, max_tokens=num_tokens, temperature=0)
    free = {"num_samples": 3, "max_tokens": 4 * num_tokens, "seed": seed}
    completions += [[text] for text in engine.complete([[tokenizer.bos]], **free)[0]]
    samples = [
        {"prompt": prompt, "completion": completion}
        for prompt, (completion,) in zip([*PROMPTS, "", "", ""], completions, strict=True)
    ]
    for sample in samples:
        print0("  {prompt}|{completion}".format(**sample).replace("\n", " "))
    if rank_and_world()[0] == 0:
        write_atomic(path, json.dumps(samples, indent=1, ensure_ascii=False) + "\n")
