"""Tokenizers that other programs wrote, read into ours: Hugging Face's tokenizer.json in its
variants, and tiktoken's ranks."""

from pathlib import Path

from nanochat.bpe.tokenizer_json import merges_of_ranks, read_parts
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
        raise DataError(
            f"the tokenizer's largest id is {max(ids)}, the model has {vocab_size}: it belongs to "
            f"another model"
        )
    return Tokenizer(pattern, merges_of_ranks(ranks), ranks, special_ids, vocab_size)


def read_tokenizer_json(path: Path, vocab_size: int) -> Tokenizer:
    """The byte-level BPE of any program's tokenizer.json.

    Raises DataError if it is of another kind, or if ours would give other ids for one of the parity
    texts than the `tokenizers` library does with the same file.
    """
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
                raise DataError(
                    f"{path}: nanochat's tokenizer would encode {text!r} as {found[:12]}, the "
                    f"tokenizers library as {expected[:12]}"
                )
    return tokenizer
