"""Tokenizers that other programs wrote: Hugging Face's tokenizer.json in its variants, and ranks as
tiktoken keeps them, read into ours; checked against the library that wrote them."""

import json
from pathlib import Path

from nanochat.common import DataError
from nanochat.parity_texts import texts
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat.tokenizer_json import byte_alphabet

# What a ByteLevel step splits by when it is left to itself (Radford et al. 2019).
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def merges_of_ranks(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that made each token of more than one byte, in order of rank.

    tiktoken joins the neighbours whose joined bytes have the lowest rank, so the merge of a token
    is what is left of its bytes when all joins of lower rank are made. Raises DataError for a token
    that no merge of two others makes.

    Example: merges_of_ranks({b"a": 0, b"b": 1, b"ab": 2, b"aba": 3}) == [(b"a", b"b"),
    (b"ab", b"a")]
    """
    never = max(ranks.values()) + 1
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            joined = [ranks.get(a + b, never) for a, b in zip(parts, parts[1:], strict=False)]
            first = min(range(len(joined)), key=joined.__getitem__)
            if joined[first] >= rank:
                break
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        if len(parts) == 2 and all(part in ranks for part in parts):
            merges.append((parts[0], parts[1]))
        elif len(parts) > 1:
            raise DataError(f"token {token!r} of rank {rank} is not made by a merge of two others")
    return merges


def from_ranks(
    ranks: dict[bytes, int], special_ids: dict[str, int], pattern: str, vocab_size: int
) -> Tokenizer:
    """The tokenizer that tiktoken.Encoding makes of the same arguments; DataError if ours cannot.

    vocab_size: the model's, a multiple of 64.
    """
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise DataError(f"the vocabulary has no token for {len(missing)} of the 256 bytes")
    check_special(special_ids)
    numbers = [*ranks.values(), *special_ids.values()]
    if len(set(numbers)) != len(numbers) or min(numbers) < 0:
        raise DataError("two tokens of the vocabulary have the same id, or one is negative")
    if max(numbers) >= vocab_size:
        raise DataError(
            f"the tokenizer's largest id is {max(numbers)}, the model has {vocab_size}: it is the "
            f"tokenizer of another model"
        )
    return Tokenizer(pattern, merges_of_ranks(ranks), ranks, special_ids, vocab_size)


def check_special(special_ids: dict[str, int]) -> None:
    """DataError naming those of nanochat's special tokens that are not there."""
    if missing := [name for name in SPECIAL_TOKENS if name not in special_ids]:
        raise DataError(f"the tokenizer has no {', '.join(missing)}; a nanochat model needs them")


def read_tokenizer_json(path: Path, vocab_size: int) -> Tokenizer:
    """The byte-level BPE of a tokenizer.json, whoever wrote it.

    Raises DataError where it is of another kind, or where ours would give other ids than the
    `tokenizers` library gives from the same file.
    """
    ranks, special_ids, pattern = read_parts(path)
    try:
        tokenizer = from_ranks(ranks, special_ids, pattern, vocab_size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    compare_with_library(path, tokenizer)
    return tokenizer


def read_parts(path: Path) -> tuple[dict[bytes, int], dict[str, int], str]:
    """parts_of() of a file; DataError where it is missing or of another kind."""
    try:
        return parts_of(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error):.200}"
        raise DataError(f"{path} is no tokenizer.json of a byte-level BPE: {reason}") from error
    except OSError as error:
        raise DataError(f"{path} could not be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def parts_of(document: dict) -> tuple[dict[bytes, int], dict[str, int], str]:
    """(ids of the tokens' bytes, ids of the special tokens, split pattern) of a tokenizer.json."""
    if document["model"]["type"] != "BPE":
        raise DataError(f"found a {document['model']['type']} model, expected BPE")
    if document.get("normalizer"):
        kind = document["normalizer"]["type"]
        raise DataError(f"found a normalizer ({kind}), which nanochat's tokenizer has no place for")
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}

    def as_bytes(name: str) -> bytes:
        return bytes(byte_of[character] for character in name)

    vocab = document["model"]["vocab"]
    pairs = [p.split(" ") if isinstance(p, str) else p for p in document["model"]["merges"]]
    ranks = {bytes([byte]): vocab[name] for name, byte in byte_of.items()}
    # subtle: a converted tiktoken vocabulary lists every way to join two tokens to a third, not
    # only the merge that was learned.
    ranks |= {as_bytes(left + right): vocab[left + right] for left, right in pairs}
    special_ids = {token["content"]: token["id"] for token in document["added_tokens"]}
    for token, number in [*ranks.items(), *special_ids.items()]:
        if type(number) is not int:
            raise DataError(f"the id of {token!r:.40} is {number!r:.40}, expected a whole number")
    return ranks, special_ids, split_pattern(document["pre_tokenizer"])


def split_pattern(step: dict) -> str:
    """The regular expression that a pre-tokenizer splits by; DataError unless it is one."""
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    kinds = [step["type"] for step in steps]
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        if steps[0]["behavior"] != "Isolated" or steps[0]["invert"]:
            raise DataError(f"text is split {steps[0]['behavior']}, expected Isolated")
        return steps[0]["pattern"]["Regex"]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return GPT2_PATTERN
    raise DataError(f"text is split by {', '.join(kinds)}; expected Split, ByteLevel or ByteLevel")


def compare_with_library(path: Path, tokenizer: Tokenizer) -> None:
    """DataError at the first text that `tokenizers`, reading the file, encodes in another way."""
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(path))
    added = [f"a {name}  b a{name}b" for name in tokenizer.special_ids]
    for as_text, ours in ((False, tokenizer.encode), (True, tokenizer.encode_ordinary)):
        theirs.encode_special_tokens = as_text
        for text in (*texts(), *added):
            found, expected = ours(text), theirs.encode(text, add_special_tokens=False).ids
            if found != expected:
                raise DataError(
                    f"{path}: nanochat's tokenizer would encode {text!r} as {found[:12]}, the "
                    f"library that wrote the file as {expected[:12]}"
                )
