"""Tokenizers that other programs wrote, read into ours: Hugging Face's tokenizer.json in its
variants, and tiktoken's ranks."""

from pathlib import Path

from nanochat.bpe.tokenizer_json import VOCAB_MULTIPLE, Parts, read_parts
from nanochat.common import DataError, print0
from nanochat.publishing.export_files import TOKENIZER, TOKENIZER_CONFIG, read_record
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
    return checked(path, read_parts(path), vocab_size)


def read_with_marks(folder: Path, vocab_size: int) -> Tokenizer:
    """As read_tokenizer_json of the folder's; special tokens that it lacks are added."""
    path, parts = folder / TOKENIZER, read_parts(folder / TOKENIZER)
    if parts.special_ids.keys() >= set(SPECIAL_TOKENS):
        return checked(path, parts, -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE)
    if (largest := max(*parts.ids.values(), *parts.special_ids.values(), 0)) >= vocab_size:
        sizes = f"the tokenizer's largest id is {largest}, the model has {vocab_size}"
        raise DataError(f"{path}: {sizes}: it belongs to another model")
    settings = read_record(folder / TOKENIZER_CONFIG) or {}
    tokens = [settings.get(name) for name in ("bos_token", "eos_token")]
    names = [token.get("content") if isinstance(token, dict) else token for token in tokens]
    begin = next((name for name in names if name in parts.special_ids), None)
    new = with_marks(parts, vocab_size, begin)
    added = {n: i for n, i in new.special_ids.items() if n not in parts.special_ids}
    marks = ", ".join(f"{name} = {token_id}" for name, token_id in added.items())
    print0(f"{path}: has no chat marks, which this adds: {marks}")
    if begin and "<|bos|>" in added:
        print0(f"{path}: {begin}, which begins a text, is called <|bos|> here")
    print0(
        f"{path}: the model has {vocab_size} ids, {new.vocab_size} now. What it has not learned of "
        f"them, pretraining alone does not teach: chat needs mid_train or chat_sft"
    )
    return checked(path, new, new.vocab_size, markup=False)


def with_marks(parts: Parts, vocab_size: int, begin: str | None) -> Parts:
    """The parts with all of our special tokens. `begin`, the special token that a text begins with,
    becomes <|bos|>; others take the last ids below vocab_size that no token has, and if there are
    too few, new ones.

    Example: with 320 ids used of 320 the vocabulary grows to 384, and the marks are 375 to 383.
    """
    specials = dict(parts.special_ids)
    if begin and "<|bos|>" not in specials:
        specials["<|bos|>"] = specials.pop(begin)
    missing = [name for name in SPECIAL_TOKENS if name not in specials]
    used = {*parts.ids.values(), *specials.values()}
    size = -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    size += VOCAB_MULTIPLE * (size - len(used) < len(missing))
    free = [i for i in range(size) if i not in used]
    specials |= zip(missing, free[len(free) - len(missing) :], strict=True)
    return parts._replace(special_ids=specials, vocab_size=size)


def checked(path: Path, parts: Parts, vocab_size: int, markup: bool = True) -> Tokenizer:
    """The tokenizer of `parts`, compared with what the library makes of the file. markup: special
    tokens are compared, too."""
    import tokenizers

    try:
        tokenizer = from_ranks(parts.ids, parts.special_ids, parts.split_pattern, vocab_size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    theirs = tokenizers.Tokenizer.from_file(str(path))
    added = [f"a {name}  b a{name}b" for name in parts.special_ids]
    encoders = {True: tokenizer.encode_ordinary} | ({False: tokenizer.encode} if markup else {})
    for as_text, encode in encoders.items():
        theirs.encode_special_tokens = as_text
        for text in (*texts(), *added):
            found, expected = encode(text), theirs.encode(text, add_special_tokens=False).ids
            if found != expected:
                differ = f"as {found[:12]}, the tokenizers library as {expected[:12]}"
                raise DataError(f"{path}: nanochat's tokenizer would encode {text!r} {differ}")
    return tokenizer
