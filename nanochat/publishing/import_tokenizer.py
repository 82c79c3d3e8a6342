"""Tokenizers that other programs wrote, read into ours: Hugging Face's tokenizer.json in its
variants, and tiktoken's ranks."""

from pathlib import Path

from nanochat.bpe.tokenizer_json import Parts, read_parts
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
    if missing := [name for name in SPECIAL_TOKENS if name not in special_ids]:
        raise DataError(f"the tokenizer has no {', '.join(missing)}; a nanochat model needs them")
    ids = [*ranks.values(), *special_ids.values()]
    if len(set(ids)) != len(ids) or min(ids) < 0:
        raise DataError("two tokens of the vocabulary have the same id, or one is negative")
    if max(ids) >= vocab_size:
        sizes = f"the tokenizer's largest id is {max(ids)}, the model has {vocab_size}"
        raise DataError(f"{sizes}: it belongs to another model")
    return Tokenizer(Parts(pattern, merges_of_ranks(ranks), ranks, special_ids, vocab_size))


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


def read_tokenizer_json(path: Path, vocab_size: int) -> Tokenizer:
    """The byte-level BPE of any program's tokenizer.json; DataError for another kind, or if the
    `tokenizers` library gives other ids for one of the parity texts than ours."""
    import tokenizers

    parts = read_parts(path)
    try:
        tokenizer = from_ranks(parts.ids, parts.special_ids, parts.split_pattern, vocab_size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    theirs = tokenizers.Tokenizer.from_file(str(path))
    added = [f"a {name}  b a{name}b" for name in parts.special_ids]
    for as_text, encode in ((False, tokenizer.encode), (True, tokenizer.encode_ordinary)):
        theirs.encode_special_tokens = as_text
        for text in (*texts(), *added):
            found, expected = encode(text), theirs.encode(text, add_special_tokens=False).ids
            if found != expected:
                differ = f"as {found[:12]}, the tokenizers library as {expected[:12]}"
                raise DataError(f"{path}: nanochat's tokenizer would encode {text!r} {differ}")
    return tokenizer
