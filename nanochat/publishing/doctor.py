"""What is wrong with a published model that prints gibberish, and which tokenizer its weights know.

Weights remember the ids that they were trained on: with the right tokenizer they need few bits for
a byte of text, with any other many. So each candidate is scored in its likely spellings (order of
the vocabulary, split pattern, places of the special tokens), and the best is named.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from nanochat.bpe.pieces import SPLIT_PATTERN
from nanochat.bpe.tokenizer_json import GPT2_PATTERN, byte_alphabet, read_parts
from nanochat.common import (
    CheckpointError,
    DataError,
    NanochatError,
    choose_dtype,
    pick_device_type,
    print0,
)
from nanochat.conversation import render
from nanochat.data.offline_corpus import python_topics
from nanochat.gpt import GPT, GPTConfig
from nanochat.publishing import karpathy_checkpoint
from nanochat.publishing.import_tokenizer import from_ranks
from nanochat.publishing.parity_texts import conversation, written
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer

TEXT_CHARACTERS = 6000
# The best candidate fits if it needs at most this share of the bits that bytes cost whoever knows
# only how frequent each is.
FITS = 0.9
# What is not as it is must be better by these factors: most texts do not tell split patterns apart,
# and a model that saw few chats hardly tells its special tokens apart.
PATTERN_MARGIN, SPECIAL_MARGIN = 1.002, 1.1
PATTERNS = {
    "nanochat's": SPLIT_PATTERN,
    "upstream's": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "GPT-2's": GPT2_PATTERN,
}
QUESTIONS = (
    ("What is the capital of France?", "Paris."),
    ("Hello! How are you?", "I am well, thank you. How can I help you?"),
    ("What is 2 + 3?", "5"),
)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A tokenizer in one spelling, and how many bits a byte of text, and of chats, costs with it.

    The figure of chats is that of the answers and their ends: it tells the special tokens apart.
    """

    source: str
    spelling: str
    tokenizer: Tokenizer
    text: float = math.nan
    chat: float = math.nan


# ---------------------------------------------------------------- candidates


def open_tokenizer(path: Path, vocab_size: int) -> tuple[Tokenizer, str | None]:
    """(a candidate, what had to be changed to fit it to the model): a tokenizer.json, a pickled
    tokenizer.pkl, or a folder with either. DataError for a tokenizer that has too many tokens."""
    if path.is_dir():
        names = ("tokenizer.json", "tokenizer.pkl")
        there = [path / name for name in names if (path / name).is_file()]
        if not there:
            raise DataError(f"{path} holds neither {' nor '.join(names)}")
        path = there[0]
    if path.suffix == ".pkl":
        state = karpathy_checkpoint.read_pickled_encoding(path)
        ranks, specials = state["mergeable_ranks"], state["special_tokens"]
        pattern = state["pat_str"]
    else:
        pattern, _, ranks, specials, _ = read_parts(path)
    try:
        return from_ranks(ranks, specials, pattern, vocab_size), None
    except DataError as error:
        reason = str(error)
    # Its special tokens may be what is wrong: the merges are tried with those where ours are.
    in_order = sorted(ranks, key=lambda token: (len(token) > 1, ranks[token]))
    ranks = {token: number for number, token in enumerate(in_order)}
    last = vocab_size - len(SPECIAL_TOKENS)
    if len(ranks) > last:
        raise DataError(f"{path} has {len(ranks):,} tokens, the model room for {last:,}")
    specials = {name: last + i for i, name in enumerate(SPECIAL_TOKENS)}
    return from_ranks(ranks, specials, pattern, vocab_size), reason


def ids_of(tokenizer: Tokenizer) -> dict[bytes, int]:
    """The ids of a tokenizer's tokens by their bytes, special and unused ids left out."""
    special = set(tokenizer.special_ids.values())
    ordinary = (i for i in range(tokenizer.vocab_size) if i not in special)
    return {token: i for i in ordinary if (token := tokenizer.decode_bytes([i]))}


def respelled(
    tokenizer: Tokenizer,
    byte_ids: list[int] | None = None,
    first_merge: int | None = None,
    specials: int | None = None,
    pattern: str | None = None,
) -> Tokenizer | None:
    """The same merges under other ids: byte b gets byte_ids[b], the merges follow from first_merge
    on, the nine special tokens from `specials` on. None when they do not fit the vocabulary."""
    ids = ids_of(tokenizer)
    if byte_ids is not None:
        ids = {bytes([byte]): number for byte, number in enumerate(byte_ids)}
        merged = [left + right for left, right in tokenizer.merges]
        ids |= {token: first_merge + i for i, token in enumerate(merged)}
    special_ids = tokenizer.special_ids
    if specials is not None:
        special_ids = {name: specials + i for i, name in enumerate(SPECIAL_TOKENS)}
    numbers = [*ids.values(), *special_ids.values()]
    if len(set(numbers)) != len(numbers) or not 0 <= min(numbers) <= max(numbers) < (
        tokenizer.vocab_size
    ):
        return None
    pattern = pattern or tokenizer.split_pattern
    return Tokenizer(pattern, tokenizer.merges, ids, special_ids, tokenizer.vocab_size)


def orders(tokenizer: Tokenizer) -> Iterator[tuple[str, Tokenizer | None]]:
    """The tokenizer as it is, and with its vocabulary in the orders that programs use."""
    last = tokenizer.vocab_size - len(SPECIAL_TOKENS)
    visible = sorted(range(256), key=byte_alphabet().__getitem__)  # as Hugging Face's trainer
    sorted_ids = [0] * 256
    for place, byte in enumerate(visible):
        sorted_ids[byte] = place
    nine = len(SPECIAL_TOKENS)
    yield "as it is", tokenizer
    yield "bytes, merges, special tokens last", respelled(tokenizer, list(range(256)), 256, last)
    moved = [nine + byte for byte in range(256)]
    yield "special tokens, bytes, merges", respelled(tokenizer, moved, nine + 256, 0)
    yield "sorted bytes, merges, special tokens last", respelled(tokenizer, sorted_ids, 256, last)
    moved = [nine + place for place in sorted_ids]
    yield "special tokens, sorted bytes, merges", respelled(tokenizer, moved, nine + 256, 0)


def special_places(tokenizer: Tokenizer) -> Iterator[tuple[str, Tokenizer | None]]:
    """The special tokens, in nanochat's order, in the places where they may have been."""
    now, used = tokenizer.bos, max(ids_of(tokenizer).values())
    starts = [tokenizer.vocab_size - len(SPECIAL_TOKENS), used + 1, 0]
    starts += [now + shift for shift in range(-9, 10)]
    for start in dict.fromkeys(starts):
        yield f"special tokens from {start} on", respelled(tokenizer, specials=start)
    numbers = sorted(tokenizer.special_ids.values())
    names = sorted(tokenizer.special_ids, key=tokenizer.special_ids.__getitem__)
    for shift in range(1, len(names)):
        rotated = dict(zip(names[shift:] + names[:shift], numbers, strict=True))
        parts = tokenizer.split_pattern, tokenizer.merges, ids_of(tokenizer), rotated
        yield (
            f"special tokens rotated by {shift}",
            Tokenizer(*parts, tokenizer.vocab_size),
        )


# ---------------------------------------------------------------- scores


def cost_of_text(candidate: Candidate) -> float:
    return candidate.text * (PATTERN_MARGIN if ", split as" in candidate.spelling else 1)


def cost_of_chats(candidate: Candidate) -> float:
    moved = any(mark in candidate.spelling for mark in (", special tokens from", " rotated by"))
    return candidate.chat * (SPECIAL_MARGIN if moved else 1)


def byte_entropy(text: str) -> float:
    """Bits per byte of the text to whoever knows how frequent each byte is, and nothing else."""
    counts = Counter(text.encode()).values()
    return -sum(n / sum(counts) * math.log2(n / sum(counts)) for n in counts)


def fits(best: Candidate, text: str) -> bool:
    """Whether weights know the best candidate. Bytes often have the same ids in every tokenizer, so
    that a wrong one is better than scrambled ids, and yet worse than knowing no order at all."""
    return best.text <= FITS * byte_entropy(text)


def default_text() -> str:
    """English prose: two sentences of ours, then pages of Python's own manual, always the same."""
    prose = written()["sentences"][0]
    topics = [text for _, text in python_topics() if len(text) > 2000]
    return f"{prose}\n\n{' '.join(' '.join(topics[:8]).split())}"[:TEXT_CHARACTERS]


@torch.no_grad()
def bits(model: GPT, rows: list[tuple[list[int], list[int]]], num_bytes: int) -> float:
    """Bits for a byte of text that the model needs for those ids of the rows (ids, mask) whose mask
    is 1, the first of a row left out."""
    nats = 0.0
    for row, mask in rows:
        ids = torch.tensor([row], device=model.device)
        logits = model(ids[:, :-1])[0]  # (T, V)
        losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        nats += float(losses[torch.tensor(mask[1:], device=model.device) == 1].sum())
    return nats / math.log(2) / num_bytes


def score_text(model: GPT, tokenizer: Tokenizer, text: str) -> float:
    """Bits per byte of text, in rows that begin with <|bos|> and fill the context."""
    length = model.config.sequence_len
    ids = tokenizer.encode_ordinary(text)
    rows = [[tokenizer.bos, *ids[i : i + length]] for i in range(0, len(ids), length)]
    return bits(model, [(row, [1] * len(row)) for row in rows], len(text.encode()))


def score_chats(model: GPT, tokenizer: Tokenizer) -> float:
    """Bits per byte of the answers in short chats, the token that ends them included: what is
    learned in fine-tuning, while the marks of a user's turn may never have been predicted."""
    rows, num_bytes = [], 0
    for question, answer in QUESTIONS:
        chat = conversation([("user", question), ("assistant", answer)] * 2)
        ids, mask = render(chat, tokenizer)
        length = model.config.sequence_len + 1
        rows.append((ids[:length], mask[:length]))
        num_bytes += 2 * len(answer.encode())
    return bits(model, rows, num_bytes)


def scrambled(tokenizer: Tokenizer) -> Tokenizer:
    """The control: the same tokens under each other's ids, which no weights can know."""
    ids = ids_of(tokenizer)
    numbers = list(ids.values())
    random.Random(0).shuffle(numbers)
    mixed = dict(zip(ids, numbers, strict=True))
    parts = tokenizer.split_pattern, tokenizer.merges, mixed, tokenizer.special_ids
    return Tokenizer(*parts, tokenizer.vocab_size)


def equal(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether both give the same ids. subtle: the fingerprint leaves the ids of merges out."""
    return a.fingerprint == b.fingerprint and ids_of(a) == ids_of(b)


def load(weights: dict[str, torch.Tensor], config: GPTConfig) -> GPT:
    """The published model, on the best device here."""
    device = torch.device(pick_device_type())
    model = GPT.from_weights(config, {name: t.to(device) for name, t in weights.items()})
    model.compute_dtype = choose_dtype(device)[0]
    return model.eval()


def diagnose(model: GPT, sources: dict[str, Tokenizer], text: str) -> tuple[list[Candidate], float]:
    """(all candidates, best first; bits per byte of the scrambled control).

    sources: tokenizers by name. For each, the order of its vocabulary is settled first, then its
    split pattern, both on text; then the places of its special tokens, on chats.
    """
    scored: list[Candidate] = []

    def measure(source: str, spelling: str, tokenizer: Tokenizer | None, bits_of_text=None):
        if tokenizer is None or any(equal(c.tokenizer, tokenizer) for c in scored):
            return
        of_text = score_text(model, tokenizer, text) if bits_of_text is None else bits_of_text
        of_chats = score_chats(model, tokenizer)
        scored.append(Candidate(source, spelling, tokenizer, of_text, of_chats))

    for source, tokenizer in sources.items():
        for spelling, other in orders(tokenizer):
            measure(source, spelling, other)
        own = [c for c in scored if c.source == source]
        if not own:
            print0(f"  {source}: the same tokenizer as another candidate")
            continue
        best = min(own, key=lambda c: c.text)
        for name, pattern in PATTERNS.items():
            measure(source, f"{best.spelling}, split as {name}",
                    respelled(best.tokenizer, pattern=pattern))  # fmt: skip
        best = min((c for c in scored if c.source == source), key=cost_of_text)
        for spelling, other in special_places(best.tokenizer):
            measure(source, f"{best.spelling}, {spelling}", other, best.text)
    scored.sort(key=lambda c: cost_of_text(c) + cost_of_chats(c))
    if not scored:
        raise NanochatError("there is no tokenizer to try; name one with --tokenizer")
    return scored, score_text(model, scrambled(scored[0].tokenizer), text)


def choose(scored: list[Candidate], text: str, wanted: set[str], accept: bool) -> Candidate:
    """The candidate to take: one with a fingerprint that the release records (wanted), else the
    best. CheckpointError where that does not fit; where none has it, too, unless `accept`."""
    recorded = [c for c in scored if c.tokenizer.fingerprint in wanted]
    best = (recorded or scored)[0]
    poor = f"needs {best.text:.2f} bits per byte, its letters alone {byte_entropy(text):.2f}"
    if recorded:
        print0(f"{best.source} has the fingerprint that the release records: it is the right one")
        if not fits(best, text):
            print0(f"yet it {poor}: text of another kind, or the weights or config.json damaged")
    elif not fits(best, text):
        raise CheckpointError(
            f"no tokenizer here fits these weights: the best {poor}. Name others with --tokenizer, "
            f"or text of the kind that the model knows with --text"
        )
    elif wanted:
        named, found = (", ".join(sorted(f[:12] for f in wanted)), best.tokenizer.fingerprint[:12])
        missing = f"the right tokenizer is not among these: the release records {named}, the best "
        missing += f"here, {best.source} ({best.spelling}), is {found}"
        if not accept:
            raise CheckpointError(f"{missing}. Name it, or take this one with --accept-tokenizer")
        print0(missing)
    print0(f"the weights know {best.source}, {best.spelling}")
    return best
