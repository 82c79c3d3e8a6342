"""Which tokenizer was a model trained with?

With the right tokenizer the weights need few bits for a byte of text, with any other one many. So
each tokenizer is scored as it is and in likely variants (order of its vocabulary, split pattern,
ids of its special tokens).
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch

from nanochat.bpe.pieces import SPLIT_PATTERN
from nanochat.bpe.tokenizer_json import GPT2_PATTERN, byte_alphabet, read_parts
from nanochat.common import (
    CheckpointError,
    DataError,
    choose_dtype,
    pick_device_type,
    print0,
)
from nanochat.conversation import render
from nanochat.data.offline_corpus import python_topics
from nanochat.dataloader import Batch
from nanochat.gpt import GPT, GPTConfig
from nanochat.publishing.import_tokenizer import from_ranks
from nanochat.publishing.karpathy_checkpoint import read_pickled_tokenizer
from nanochat.publishing.parity_texts import conversation, written
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat.training.validation import bits_per_byte

TEXT_CHARACTERS = 6000
# The best candidate fits if it needs at most this share of the entropy of single bytes. (Bytes
# often have the same ids in every tokenizer, so that a wrong one still beats random ids.)
FITS = 0.9
# A variant has to be better by these factors: most texts do not tell split patterns apart, and a
# model that saw few chats hardly tells its special tokens apart.
PATTERN_MARGIN, SPECIAL_MARGIN = 1.002, 1.1
PATTERNS = {
    "nanochat": SPLIT_PATTERN,
    "karpathy/nanochat": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "GPT-2": GPT2_PATTERN,
}
QUESTIONS = (
    ("What is the capital of France?", "Paris."),
    ("Hello! How are you?", "I am well, thank you. How can I help you?"),
    ("What is 2 + 3?", "5"),
)


@dataclass(frozen=True)
class Candidate:
    """A tokenizer in its best variant, and the bits per byte of text and of answers in chats."""

    source: str
    variant: str
    tokenizer: Tokenizer
    text: float
    chat: float


def search(
    model: GPT, sources: dict[str, Tokenizer], text: str, recorded: set[str]
) -> list[Candidate]:
    """The best variant of each of `sources`, tokenizers by name; the best of all first.

    First the order of the vocabulary and the split pattern are found, by text; then the ids of the
    special tokens, by chats. recorded: fingerprints that win whatever the score.
    """
    by_text = partial(score_text, model, text=text)
    by_chats = partial(score_chats, model)
    found = []
    for source, tokenizer in sources.items():
        changes = []
        for variants, score, margin in (
            (orders, by_text, 1.0),
            (split_patterns, by_text, PATTERN_MARGIN),
            (special_places, by_chats, SPECIAL_MARGIN),
        ):
            ranked = [(tokenizer.fingerprint not in recorded, score(tokenizer), "", tokenizer)]
            for name, other in filter(itemgetter(1), variants(tokenizer)):
                worth = score(other) * margin
                ranked.append((other.fingerprint not in recorded, worth, name, other))
            *_, change, tokenizer = min(ranked, key=itemgetter(0, 1))
            changes += [change] if change else []
        variant = ", ".join(changes) or "as it is"
        found.append(Candidate(source, variant, tokenizer, by_text(tokenizer), by_chats(tokenizer)))
    return sorted(found, key=lambda c: c.text + c.chat)


def choose(candidates: list[Candidate], text: str, recorded: set[str], accept: bool) -> Candidate:
    """The tokenizer with one of the `recorded` fingerprints, else the best; CheckpointError if that
    does not fit, or, unless `accept`, if none of those that the folder records is there."""
    if not candidates:
        raise CheckpointError("there is no tokenizer to try; name one with --tokenizer")
    right = [c for c in candidates if c.tokenizer.fingerprint in recorded]
    best = (right or candidates)[0]
    entropy = byte_entropy(text)
    fits = best.text <= FITS * entropy
    bits = f"needs {best.text:.2f} bits per byte, single bytes {entropy:.2f}"
    if right:
        print0(f"{best.source} has the fingerprint that the folder records")
        if not fits:
            print0(f"but it {bits}: text of another kind, or damaged weights or config.json")
    elif not fits:
        raise CheckpointError(
            f"no tokenizer here fits these weights: the best {bits}. Name others with --tokenizer, "
            f"or text of the kind that the model knows with --text"
        )
    elif recorded:
        missing = (
            f"none of these tokenizers is the recorded one, {', '.join(f[:12] for f in recorded)}; "
            f"the best, {best.source} ({best.variant}), is {best.tokenizer.fingerprint[:12]}"
        )
        if not accept:
            raise CheckpointError(f"{missing}. Name it, or take this one with --accept-tokenizer")
        print0(missing)
    print0(f"the weights know {best.source}, {best.variant}")
    return best


# ---------------------------------------------------------------- variants


def open_tokenizer(path: Path, vocab_size: int) -> tuple[Tokenizer, str | None]:
    """(a tokenizer, why its ids had to be changed) from a tokenizer.json, a tokenizer.pkl, or a
    folder with either; DataError if it has too many tokens for the model."""
    if path.is_dir():
        path = path / ("tokenizer.json" if (path / "tokenizer.json").is_file() else "tokenizer.pkl")
    if path.suffix == ".pkl":
        ranks, special_ids, pattern = read_pickled_tokenizer(path)
    else:
        pattern, _, ranks, special_ids, _ = read_parts(path)
    try:
        return from_ranks(ranks, special_ids, pattern, vocab_size), None
    except DataError as error:
        reason = str(error)
    # Its special tokens may be what is wrong: try the merges with those where ours are.
    in_order = sorted(ranks, key=lambda token: (len(token) > 1, ranks[token]))
    ranks = {token: i for i, token in enumerate(in_order)}
    last = vocab_size - len(SPECIAL_TOKENS)
    if len(ranks) > last:
        raise DataError(f"{path} has {len(ranks):,} tokens, the model room for {last:,}")
    return from_ranks(ranks, special_ids_from(last), pattern, vocab_size), reason


def special_ids_from(first: int) -> dict[str, int]:
    return {name: first + i for i, name in enumerate(SPECIAL_TOKENS)}


def changed(tokenizer: Tokenizer, **parts) -> Tokenizer | None:
    """The tokenizer with other `parts`; None if the ids collide or do not fit."""
    new = tokenizer.parts._replace(**parts)
    numbers = {*new.ids.values(), *new.special_ids.values()}
    fits = len(numbers) == len(new.ids) + len(new.special_ids) and max(numbers) < new.vocab_size
    return Tokenizer(new) if fits else None


def orders(tokenizer: Tokenizer) -> Iterator[tuple[str, Tokenizer | None]]:
    """The tokenizer with its vocabulary in the orders that programs use."""
    nine = len(SPECIAL_TOKENS)
    merged = [left + right for left, right in tokenizer.merges]
    visible = sorted(range(256), key=byte_alphabet().__getitem__)  # as Hugging Face's trainer
    for name, in_order in (("bytes", range(256)), ("sorted bytes", visible)):
        tokens = [*(bytes([byte]) for byte in in_order), *merged]
        for variant, first, specials in (
            (f"{name}, merges, special tokens last", 0, tokenizer.vocab_size - nine),
            (f"special tokens, {name}, merges", nine, 0),
        ):
            ids = {token: first + i for i, token in enumerate(tokens)}
            yield variant, changed(tokenizer, ids=ids, special_ids=special_ids_from(specials))


def split_patterns(tokenizer: Tokenizer) -> Iterator[tuple[str, Tokenizer | None]]:
    for name, pattern in PATTERNS.items():
        yield f"split as {name}", changed(tokenizer, split_pattern=pattern)


def special_places(tokenizer: Tokenizer) -> Iterator[tuple[str, Tokenizer | None]]:
    """The nine special tokens at the end, behind the merges, in front or where they are, in every
    rotation of nanochat's order."""
    nine, behind = len(SPECIAL_TOKENS), max(tokenizer.parts.ids.values()) + 1
    now = min(tokenizer.special_ids.values())
    for start in dict.fromkeys((tokenizer.vocab_size - nine, behind, 0, now)):
        for shift in range(nine):
            name = f"special tokens from {start} on" + (f", rotated by {shift}" if shift else "")
            ids = {n: start + (i + shift) % nine for i, n in enumerate(SPECIAL_TOKENS)}
            yield name, changed(tokenizer, special_ids=ids)


# ---------------------------------------------------------------- scores


def load(weights: dict[str, torch.Tensor], config: GPTConfig) -> GPT:
    """The model, on the best device here."""
    device = torch.device(pick_device_type())
    model = GPT.from_weights(config, {name: t.to(device) for name, t in weights.items()})
    model.compute_dtype = choose_dtype(device)[0]
    return model.eval()


def byte_entropy(text: str) -> float:
    """Bits per byte for a model that knows how frequent each byte is, and nothing else."""
    data = text.encode()
    return -sum(n / len(data) * math.log2(n / len(data)) for n in Counter(data).values())


def default_text() -> str:
    """English prose: two sentences of ours, then pages of Python's own manual, always the same."""
    topics = [text for _, text in python_topics() if len(text) > 2000][:8]
    manual = " ".join(" ".join(topics).split())
    return f"{written()['sentences'][0]}\n\n{manual}"[:TEXT_CHARACTERS]


def score_text(model: GPT, tokenizer: Tokenizer, text: str) -> float:
    """Bits per byte of the text, in rows that begin with <|bos|> and fill the context."""
    length, ids = model.config.sequence_len, tokenizer.encode_ordinary(text)
    rows = [[tokenizer.bos, *ids[i : i + length]] for i in range(0, len(ids), length)]
    return bits_of_rows(model, [(row, [1] * len(row)) for row in rows]) / len(text.encode())


def score_chats(model: GPT, tokenizer: Tokenizer) -> float:
    """Bits per byte of the answers in short chats and the tokens that end them: what fine-tuning
    teaches, unlike the markup of a user's turn."""
    rows, num_bytes, length = [], 0, model.config.sequence_len + 1
    for question, answer in QUESTIONS:
        chat = conversation([("user", question), ("assistant", answer)] * 2)
        ids, mask = render(chat, tokenizer)
        rows.append((ids[:length], mask[:length]))
        num_bytes += 2 * len(answer.encode())
    return bits_of_rows(model, rows) / num_bytes


def bits_of_rows(model: GPT, rows: list[tuple[list[int], list[int]]]) -> float:
    """Loss in bits, summed, of the ids whose mask is 1 in rows of (ids, mask)."""
    tables = [torch.tensor([ids, mask]) for ids, mask in rows]
    batches = (Batch(t[:1, :-1], torch.where(t[1:, 1:] == 1, t[:1, 1:], -1)) for t in tables)
    ones = torch.ones(model.config.vocab_size)  # so that bits per byte are bits per token
    bits, tokens = bits_per_byte(model, batches, len(rows), ones)
    return bits * tokens
