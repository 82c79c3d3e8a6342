"""Tokenizers that other programs wrote: Hugging Face's tokenizer.json in its variants, and ranks as
tiktoken keeps them, read into ours; checked against the library that wrote them."""

from pathlib import Path

from nanochat.bpe.tokenizer_json import read_parts
from nanochat.common import DataError
from nanochat.publishing.parity_texts import texts
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer


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


def check_special(special_ids: dict[str, int]) -> None:
    """DataError naming those of nanochat's special tokens that are not there."""
    if missing := [name for name in SPECIAL_TOKENS if name not in special_ids]:
        raise DataError(f"the tokenizer has no {', '.join(missing)}; a nanochat model needs them")


def read_tokenizer_json(path: Path, vocab_size: int) -> Tokenizer:
    """The byte-level BPE of a tokenizer.json, whoever wrote it.

    Raises DataError where it is of another kind, or where ours would give other ids than the
    `tokenizers` library gives from the same file.
    """
    parts = read_parts(path)
    try:
        tokenizer = from_ranks(parts.ids, parts.special_ids, parts.split_pattern, vocab_size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    compare_with_library(path, tokenizer)
    return tokenizer


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
