"""Tasks by name, and mixtures as they are written on a command line.

A mixture is "name[@source][:epochs], ...", for example "smoltalk@./chats, gsm8k:2, arithmetic:0.5".
The source is a hub id, a file or a folder (see the task), in quotes if it has a colon or a comma:
'smoltalk@"a,b.jsonl":2'. Two epochs of a task that is made by rule
are twice as many conversations, none of them twice.

A task of your own is package.module:Class, a subclass of Task that is made with the split alone.
"""

import gc
import hashlib
import importlib
import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch

from nanochat.common import (
    ConfigError,
    NanochatError,
    all_reduce_sum,
    on_rank0,
    print0,
    rank_and_world,
)
from nanochat.data.token_shards import TokenShard, TokenShards, tokenize_conversations
from tasks.arc import ARC
from tasks.arithmetic import Arithmetic
from tasks.facts import Facts
from tasks.free import Free, Talk
from tasks.gsm8k import GSM8K
from tasks.humaneval import HumanEval
from tasks.identity import Identity
from tasks.mixture import Mixture, in_turns
from tasks.mmlu import MMLU
from tasks.smoltalk import HUB_CHATS, SmolTalk
from tasks.spelling import LONG, Spelling
from tasks.table import TableFacts
from tasks.task import GeneratedTask, Task
from tasks.unknown import Unknown

SOURCE = r"""(?P<source>"[^"]+"|'[^']+'|[^:,"'][^:,]*)"""
PART = re.compile(rf"\s*(?P<name>[\w-]+)(@{SOURCE})?(:(?P<epochs>\d+\.?\d*|\.\d+))?\s*")
OWN = re.compile(r"\s*([\w.]+:[A-Za-z_]\w*)\s*")
FEWEST_IN_TWO = 2_000  # conversations of each half; of fewer a fork takes longer than it saves
NAMES = (
    "smoltalk, mmlu, arc-easy, arc-challenge, gsm8k, humaneval, "
    "arithmetic, spelling, spell, spell-long, count, facts, identity, unknown, free, talk"
)


def find_named(name: str, flag: str) -> Callable:
    """The function or class that `flag` names as "package.module:name"; ConfigError without it."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{flag} {name!r}: {error}. Expected package.module:name, with the module where "
            f"Python finds it, for example in the folder that you start from"
        ) from error
    if not callable(found):
        raise ConfigError(f"{flag} {name!r} is {found!r}, expected a function or a class")
    return found


def make_task(
    name: str,
    split: str,
    source: str | None = None,
    *,
    size: int | None = None,
    pieces: Sequence[str] = (),
    sandbox=None,
    max_malformed: float | None = None,
) -> Task:
    """The task called `name`, split "train" or "test"; ConfigError lists the names there are.

    size: conversations of a task that is made by rule; pieces: the tokens that spelling teaches;
    sandbox: what runs the programs of humaneval; max_malformed: the share of a data set's rows that
    may be left out, as they are malformed.
    """
    if OWN.fullmatch(name):
        task = find_named(name, "task")(split)
        if not isinstance(task, Task):
            raise ConfigError(f"task {name!r} is no subclass of tasks.task.Task; found {task!r}")
        return task
    if name == "smoltalk":
        return SmolTalk(source or HUB_CHATS, split, max_malformed)
    if name == "mmlu":
        return MMLU("auxiliary_train" if split == "train" else split, source, max_malformed)
    if name in ("arc-easy", "arc-challenge"):
        subset = {"arc-easy": "ARC-Easy", "arc-challenge": "ARC-Challenge"}[name]
        return ARC(subset, split, source, max_malformed)
    if name == "gsm8k":
        return GSM8K(split, source, max_malformed)
    if name == "humaneval":
        return HumanEval(source, sandbox, split)
    if name == "free":
        return Free(split, source)
    if name == "talk":
        return Talk(split, source)
    if name == "identity":
        return Identity(split, size, path=source)
    if name == "unknown":
        return Unknown(split, size, path=source)
    if name == "facts":
        return TableFacts(split, size, source) if source else Facts(split, size)
    if source:
        raise ConfigError(f"task {name!r} is made by rule and takes no source; found {source!r}")
    if name in ("spell", "count"):
        return Spelling(split, size, question=name, pieces=pieces)
    if name == "spell-long":
        return Spelling(split, size, question="spell", letters=LONG, pieces=pieces)
    if name == "spelling":
        return Spelling(split, size, pieces=pieces)
    if name == "arithmetic":
        return Arithmetic(split, size)
    raise ConfigError(f"task {name!r} is unknown; choose from {NAMES}")


def task_or_why_not(text: str, device: torch.device, open_sandbox: Callable) -> Task | str:
    """The test split of the task name[@source]; or, printed too, why it cannot be run: on all ranks
    if any lacks its data or a sandbox. ConfigError for an unknown name."""
    name, source = split_name(text)
    task, why = None, "another rank has no data for it, or no sandbox"
    try:
        sandbox = open_sandbox() if name == "humaneval" else None
        task = make_task(name, "test", source, sandbox=sandbox)
    except ConfigError:
        raise
    except NanochatError as error:
        why = str(error)
    failed = all_reduce_sum(torch.tensor(float(task is None), device=device))
    if failed:
        print0(f"{text}: not run: {why}")
    return why if failed else task


def split_part(text: str) -> tuple[str, str | None, str | None]:
    """(name, source, epochs) of name[@source][:epochs]; ConfigError for another form."""
    match = PART.fullmatch(text)
    if not match:
        raise ConfigError(
            f"{text!r} is not of the form name[@source][:epochs], a source with a colon or a "
            f"comma in quotes"
        )
    source = match["source"] and match["source"].strip()
    return match["name"], source[1:-1] if source and source[0] in "\"'" else source, match["epochs"]


def split_name(text: str) -> tuple[str, str | None]:
    """(name, source) of name[@source] or package.module:Class; ConfigError for another form."""
    if own := OWN.fullmatch(text):
        return own[1], None
    name, source, epochs = split_part(text)
    if epochs:
        raise ConfigError(f"{text!r}: a task by itself has no epochs; name[@source] is its form")
    return name, source


def mixture(
    text: str,
    split: str,
    seed: int,
    pieces: Sequence[str] = (),
    max_malformed: float | None = None,
) -> Mixture:
    """The mixture that `text` describes; raises ConfigError on text of another form."""
    parts = []
    for part in re.findall(r"""(?:"[^"]*"|'[^']*'|[^,])+""", text):
        if not part.strip():
            continue
        name, source, given = split_part(part)
        epochs = float(given or 1)
        task = make_task(name, split, source, pieces=pieces, max_malformed=max_malformed)
        if isinstance(task, GeneratedTask) and epochs > 0:
            task.size, epochs = max(1, round(len(task) * epochs)), 1
        parts.append((task, epochs))
    return Mixture(parts, seed)


def tokenize_mixtures(
    stage: str, config, tokenizer, go_on: float = 0.0, longest: int = 0
) -> tuple[TokenShards, TokenShards, dict[str, int], str]:
    """What a stage's `config` mixes: config.mixture to train on and the held-out config.val_mixture
    as tokens, the number of conversations of each task, printed too, and the fingerprint. go_on,
    longest: see in_turns."""
    allowed = config.max_malformed
    train = mixture(config.mixture, "train", config.seed, tokenizer.pieces(), allowed)
    val = mixture(config.val_mixture, "test", config.seed, (), allowed)
    counts = dict(train.report())
    print0(", ".join(f"{name} {count:,}" for name, count in counts.items()))
    tokens = tokenize_in_two(train, tokenizer, f"{stage} mixture")
    tokens = in_turns(tokens, go_on, longest, config.seed)
    val_tokens = tokenize_conversations(val, tokenizer, name=f"{stage} validation")
    examples = tokens.documents(), val_tokens.documents()
    return tokens, val_tokens, counts, on_rank0(lambda: fingerprint(*examples))


def tokenize_in_two(conversations: Sequence[dict], tokenizer, name: str) -> TokenShards:
    """tokenize_conversations of many, on Linux the second half in a fork of this process."""
    half = len(conversations) // 2

    def tokenize(rows: range) -> TokenShards:
        return tokenize_conversations((conversations[i] for i in rows), tokenizer, name=name)

    if half < FEWEST_IN_TWO or sys.platform != "linux" or rank_and_world()[1] > 1:
        return tokenize(range(len(conversations)))
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def tokenize_rest() -> None:
        with suppress(Exception):  # which this process then meets itself
            sender.send(tokenize(range(half, len(conversations))).shards[0])

    gc.freeze()  # what is there already is neither looked at again nor copied for the fork
    multiprocessing.get_context("fork").Process(target=tokenize_rest, daemon=True).start()
    sender.close()
    first = tokenize(range(half))
    try:
        parts = first.shards[0], receiver.recv()
    except EOFError:
        return tokenize(range(len(conversations)))
    tokens, masks = (np.concatenate([getattr(p, of) for p in parts]) for of in ("tokens", "mask"))
    offsets = np.append(parts[0].offsets, parts[1].offsets[1:] + len(parts[0].tokens))
    return replace(first, shards=[TokenShard(tokens, offsets, masks)])


def fingerprint(examples: Iterable[bytes], held_out: Iterable[bytes] = ()) -> str:
    """SHA-256 over the examples in their order. Prints how many of them are held out, too."""
    digest, common = hashlib.sha256(), 0
    measured = {hash(example) for example in held_out}
    for example in examples:
        digest.update(example)
        common += hash(example) in measured
    if common:
        print0(f"{common:,} conversations are in training and equal to held-out ones")
    return digest.hexdigest()


def as_bytes(task: Sequence[dict]) -> Iterator[bytes]:
    # subtle: by index, for a task of one's own may have no end when it is iterated
    conversations = (task[i] for i in range(len(task)))
    return (json.dumps(one["messages"], sort_keys=True).encode() for one in conversations)
