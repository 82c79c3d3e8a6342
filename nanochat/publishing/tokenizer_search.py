"""Which tokenizer was a model trained with?

With the right tokenizer the weights need few bits for a byte of text, with any other one many. So
each tokenizer is scored as it is and in likely variants: other orders of its vocabulary, other
split patterns.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat.bpe.pieces import SPLIT_PATTERN
from nanochat.bpe.tokenizer_json import byte_alphabet, read_parts
from nanochat.common import CheckpointError, DataError, choose_dtype, pick_device_type, print0
from nanochat.data.offline_corpus import python_topics
from nanochat.dataloader import Batch
from nanochat.gpt import GPT, GPTConfig
from nanochat.publishing.import_tokenizer import from_ranks
from nanochat.publishing.karpathy_checkpoint import read_pickled_tokenizer
from nanochat.publishing.parity_texts import written
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat.training.validation import bits_per_byte

TEXT_CHARACTERS = 6000
# The best candidate fits if it needs at most this share of the entropy of single bytes. (Bytes
# often have the same ids in every tokenizer, so that a wrong one still beats random ids.)
FITS = 0.9
# A variant has to be better by this factor: most texts do not tell split patterns apart.
MARGIN = 1.002
PATTERNS = {
    "nanochat": SPLIT_PATTERN,
    "karpathy/nanochat": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
}


@dataclass(frozen=True)
class Candidate:
    """A tokenizer in its best variant, and the bits that the weights need with it for a byte."""

    source: str
    variant: str
    tokenizer: Tokenizer
    bits: float


def search(
    model: GPT, sources: dict[str, Tokenizer], text: str, recorded: set[str]
) -> list[Candidate]:
    """The best variant of each of `sources`, tokenizers by name; the best of all first.

    recorded: fingerprints that win whatever the score.
    """

    def rank(candidate: Candidate) -> tuple[bool, float]:  # the least is the best
        return candidate.tokenizer.fingerprint not in recorded, candidate.bits

    found = []
    for source, tokenizer in sources.items():
        best = Candidate(source, "as it is", tokenizer, score(model, tokenizer, text))
        for variants in (orders, split_patterns):
            start = best
            for name, other in variants(start.tokenizer):
                bits = score(model, other, text)
                variant = f"{start.variant}, {name}".removeprefix("as it is, ")
                if rank(Candidate(source, variant, other, MARGIN * bits)) < rank(best):
                    best = Candidate(source, variant, other, bits)
        found.append(best)
    return sorted(found, key=rank)


def choose(candidates: list[Candidate], text: str, recorded: set[str], accept: bool) -> Candidate:
    """The first candidate; CheckpointError if it does not fit, or, unless `accept`, if it is none
    of the tokenizers whose fingerprints the folder records. A recorded one always fits."""
    if not candidates:
        raise CheckpointError("there is no tokenizer to try; name one with --tokenizer")
    best = candidates[0]
    entropy, fingerprint = byte_entropy(text), best.tokenizer.fingerprint
    fits = best.bits <= FITS * entropy
    bits = f"needs {best.bits:.2f} bits per byte, single bytes {entropy:.2f}"
    if fingerprint in recorded:
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
            f"the best, {best.source} ({best.variant}), is {fingerprint[:12]}"
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


def orders(tokenizer: Tokenizer) -> Iterator[tuple[str, Tokenizer]]:
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
            parts = {"ids": {token: first + i for i, token in enumerate(tokens)}}
            parts["special_ids"] = special_ids_from(specials)
            yield variant, Tokenizer(tokenizer.parts._replace(**parts))


def split_patterns(tokenizer: Tokenizer) -> Iterator[tuple[str, Tokenizer]]:
    for name, pattern in PATTERNS.items():
        yield f"split as {name}", Tokenizer(tokenizer.parts._replace(split_pattern=pattern))


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


def score(model: GPT, tokenizer: Tokenizer, text: str) -> float:
    """Bits per byte of the text, in rows that begin with <|bos|> and fill the context."""
    length, ids = model.config.sequence_len, tokenizer.encode_ordinary(text)
    starts = range(0, len(ids), length)
    rows = (torch.tensor([[tokenizer.bos, *ids[i : i + length]]]) for i in starts)  # (1, T + 1)
    batches = (Batch(row[:, :-1], row[:, 1:]) for row in rows)
    return bits_per_byte(model, batches, len(starts), tokenizer.token_bytes())[0]
