"""Byte-level BPE: the core, its plain-Python twin, rustbpe, tiktoken and `tokenizers` agree."""

import argparse
import inspect
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rustbpe
import tiktoken
from forked import run_code
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanochat import cpp
from nanochat.bpe import native, reference
from nanochat.bpe.fallback import LibraryEncoder
from nanochat.bpe.pieces import SPLIT_PATTERN, Splitter, as_bytes, unicode_ranges
from nanochat.bpe.reference import token_bytes
from nanochat.bpe.tokenizer_json import to_json
from nanochat.cpp import cpp_compiler
from nanochat.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
SPLITTER = Splitter(SPLIT_PATTERN)
CODE = inspect.getsource(argparse)
random_bytes = random.Random(0).randbytes

# Texts of every kind that a splitter or a merge could get wrong.
SOME_CODE_POINTS = [chr(c) for c in range(0, 0x110000, 37) if not 0xD800 <= c < 0xE000]
KINDS = {
    "english": (inspect.getdoc(argparse) + " I'd say they're John's; we'll see, I'm sure. ") * 9,
    "code": CODE[:30_000],
    "scripts": "Straße naïve Привет мир 你好世界 今日は 오늘은 नमस्ते مرحبا שלום ไทย ٣٤٥ Ⅻ ½ " * 20,
    "emoji": "🙂🙃 \U0001f469\u200d\U0001f467 e\u0301 🏳️\u200d🌈!!  👍🏽x" * 20,
    "white space": " a  b   c\t\td \t e\n\n f\n \n g\u00a0h \u3000 i\u2003\u2003j\x85k \x0b l   "
    * 20,
    "CRLF": "one\r\ntwo\r\n\r\n three\r \r\nfour.\r\n...\r\n\r" * 20,
    "contractions": "I'M DON'T WE'LL You'Re 'tis 'Sam 'sſ '\u017f it'\u017ft 'LL'l 'R 'V'd'D" * 20,
    "every 37th code point": "".join(
        f"a{c} {c}1{'' if ord(c) % 5 else ' '}" for c in SOME_CODE_POINTS
    ),
    "random bytes": random_bytes(9000).decode(errors="replace")
    + random_bytes(999).decode("latin-1"),
    "NUL bytes": "a\0b\0\0c \0 d\0" * 30,
    "runs": "aaaaaaa aaaa aa aaaaa ababab abababa " * 30 + "=" * 300 + " " * 300 + "-=" * 200,
}


pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def core() -> SimpleNamespace:
    return native.core()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(KINDS.values(), 1024)


@pytest.fixture(scope="module")
def merges(core) -> list[reference.Pair]:
    return native.train(core, KINDS.values(), 759)


@pytest.fixture(scope="module")
def encoder(core, merges) -> native.NativeEncoder:
    return encoder_of(core, merges)


def encoder_of(
    core: SimpleNamespace, merges: list, dtype: type = np.uint32
) -> native.NativeEncoder:
    return native.NativeEncoder(core, merges, range(256 + len(merges)), dtype)


def python_train(texts, max_merges: int) -> list[reference.Pair]:
    return reference.learn_merges(reference.count_words(texts, SPLIT_PATTERN), max_merges)


def encode_with(text: str, merges: list[reference.Pair]) -> list[int]:
    """reference.encode, each different piece once."""
    ids = {pair: 256 + i for i, pair in enumerate(merges)}
    pieces = SPLITTER.pieces(text)
    known = {piece: reference.encode_piece(piece, ids) for piece in set(pieces)}
    return [i for piece in pieces for i in known[piece]]


def decode(ids: list[int], merges: list[reference.Pair]) -> bytes:
    tokens = token_bytes(merges)
    return b"".join(tokens[i] for i in ids)


# ---------------------------------------------------------------- the reference, by hand


@pytest.mark.slow
def test_reference_by_hand():
    # "ab" once, " ab" twice, " abc" once: (a, b) 4 times, (" ", ab) 3 times, (" ab", c) once.
    words = reference.count_words(["ab ab ab abc"], SPLIT_PATTERN)
    assert words == {b"ab": 1, b" ab": 2, b" abc": 1}
    found = reference.learn_merges(words, 9)
    assert found == [(97, 98), (32, 256), (257, 99)]
    assert reference.token_bytes(found)[256:] == [b"ab", b" ab", b" abc"]
    ids = {pair: 256 + i for i, pair in enumerate(found)}
    assert reference.encode("ab abc abca", ids, SPLITTER) == [256, 258, 258, 97]


@pytest.mark.slow
def test_ties_go_to_the_smallest_pair():
    assert reference.learn_merges({b"zy": 2, b"ba": 2, b"bc": 2}, 2) == [(98, 97), (98, 99)]


def test_runs_merge_from_the_left():
    # "aaa": both of its pairs count, one is merged.
    assert reference.learn_merges({b"aaa": 2, b"bc": 3}, 2) == [(97, 97), (98, 99)]
    assert reference.encode_piece(b"aaaaa", {(97, 97): 256}) == [256, 256, 97]


# ---------------------------------------------------------------- splitting


def native_split(core: SimpleNamespace, text: str) -> list[bytes]:
    data = as_bytes(text)
    ends = np.empty(len(data), np.int64)
    ends = ends[: core.split(data, len(data), ends.ctypes.data)].tolist()
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def random_texts(count: int, seed: int) -> list[str]:
    """Short texts of characters that the pattern tells apart, and of any others."""
    rng = random.Random(seed)
    common = [*"aZé你ſsSdDlLrReEvVtTmM'''   \n\r\t10٣Ⅻ.,=-_\0", "\u00a0", "\u3000", "\u0301", "🙂"]
    common += ["\u2028", "\x85", "'ll", "'RE", "\r\n", "    ", "\u088f", "\x1c", "\ufffd"]
    letters, numbers = unicode_ranges("LETTERS"), unicode_ranges("NUMBERS")
    edges = [chr(c + d) for a, b in letters + numbers for c in (a, b) for d in (-1, 0, 1)]

    def one() -> str:
        kind = rng.random()
        if kind < 0.7:
            return "".join(rng.choices(common, k=rng.randrange(24)))
        return "".join(rng.choice(common) + rng.choice(edges) for _ in range(rng.randrange(12)))

    return [one() for _ in range(count)]


@pytest.mark.slow
def test_scanner_splits_as_the_pattern_does(core):
    for text in [*random_texts(40_000, seed=1), *KINDS.values()]:
        assert native_split(core, text) == SPLITTER.pieces(text), repr(text)


@pytest.mark.slow
def test_blocks_of_ascii_are_split_as_the_pattern_does(core):
    # 64 bytes are split at once: all short sequences of what the pattern tells apart.
    for characters in product("as1 \t\n.'l", repeat=4):
        text = "".join(characters) + "behind" * 12
        assert native_split(core, text) == SPLITTER.pieces(text), repr(text)


@pytest.mark.slow
def test_long_texts_are_split_as_the_pattern_does(core):
    rng = random.Random(2)
    plain = [*"aZsTdlrevm\n\n\r\t10234.,=-_()", "'", "'", '"', "word", "Behind", " ", " ", " " * 8]
    plain += ["'ll", "\r\n", "   \n"]
    for rare in ("", "é", "\x1c", "\x7f", "\u3000", "٣", "ſ"):
        for _ in range(300):
            weights = [1] * len(plain) + [0.3]
            text = "".join(rng.choices([*plain, rare], weights, k=rng.randrange(40, 200)))
            assert native_split(core, text) == SPLITTER.pieces(text), repr(text)


@pytest.mark.slow
def test_scanner_takes_every_code_point(core):
    """All of the planes with writing systems; of the others, what ends or begins a range."""
    ranges = unicode_ranges("LETTERS") + unicode_ranges("NUMBERS")
    edges = {c + d for a, b in ranges for c in (a, b) for d in (-1, 0, 1)}
    points = {*range(0x20000), *range(0x20000, 0x110000, 61), *edges}
    points = sorted(points - {*range(0xD800, 0xE000)})  # surrogates, which UTF-8 cannot hold
    for first in range(0, len(points), 64):
        text = "".join(f"a{c}1 {c}" for c in map(chr, points[first : first + 64]))
        assert native_split(core, text) == SPLITTER.pieces(text), hex(points[first])


@settings(max_examples=200, deadline=None)
@given(data=st.text("ab \n\r.é\u3000", max_size=30))
def test_long_texts_are_cut_only_where_a_piece_begins_anyway(core, data):
    # Behind a letter before a blank, and behind a newline before what is no white space.
    whole = SPLITTER.pieces(data)
    for i in range(1, len(data)):
        letter = data[i - 1].isalpha() and data[i] == " "
        if letter or (data[i - 1] == "\n" and not data[i].isspace()):
            assert SPLITTER.pieces(data[:i]) + SPLITTER.pieces(data[i:]) == whole


@pytest.mark.slow
def test_one_long_text_equals_its_parts(core, encoder, merges):
    text = KINDS["english"] * 15 + KINDS["white space"] * 80 + KINDS["CRLF"] * 150
    assert len(text) > 1 << 19  # cut in two or more
    assert encoder.encode_batch([text], 2)[0].tolist() == encode_with(text, merges)
    assert native.train(core, [text], 44, num_threads=2) == python_train([text], 44)


# ---------------------------------------------------------------- training


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.text("ab ", max_size=20), max_size=6), count=st.integers(0, 44))
def test_merges_equal_the_reference(core, texts, count):
    assert native.train(core, texts, count, num_threads=1) == python_train(texts, count)


@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.text("abc", min_size=1, max_size=60), max_size=20))
@example(words=["a" * n for n in range(60)])
@example(words=["ab" * 20 + "a", "ba" * 20, "aab" * 13, "abab" * 9])
def test_merges_of_overlaps_and_ties_equal_the_reference(core, words):
    texts = [" ".join(words)]
    assert native.train(core, texts, 344) == python_train(texts, 344)


@pytest.mark.parametrize("kind", KINDS)
def test_merges_equal_rustbpe(core, kind):
    text = KINDS[kind]
    other = rustbpe.Tokenizer()
    other.train_from_iterator(iter([text]), 400, pattern=SPLIT_PATTERN)
    expected = [bytes(t) for t, _ in sorted(other.get_mergeable_ranks(), key=lambda pair: pair[1])]
    found = native.train(core, [text], 144)
    assert token_bytes(found) == expected
    assert found == python_train([text], 144)


def test_any_number_of_threads(core, encoder):
    texts = [*KINDS.values(), *random_texts(500, seed=2)] * 2
    expected = native.train(core, texts, 300, num_threads=1)
    ids, offsets = encoder.encode_batch(texts, 1)
    for threads in (2, 8):
        assert native.train(core, texts, 300, num_threads=threads) == expected
        again = encoder.encode_batch(texts, threads)
        np.testing.assert_array_equal(again[0], ids)
        np.testing.assert_array_equal(again[1], offsets)


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["a", "b"]])
def test_nothing_to_learn_from(core, texts):
    assert native.train(core, texts, 44) == []


def test_the_end_of_the_text_is_told(core, capsys):
    assert native.train(core, ["ab ab ab abc"], 44) == [(97, 98), (32, 256), (257, 99)]
    Tokenizer.train(["ab ab ab abc"], 320)
    assert "after 3 merges the text has no pair of tokens left" in capsys.readouterr().out


def test_one_text_in_the_place_of_several(core, encoder):
    for action in (lambda: native.train(core, "ab ab", 1), lambda: encoder.encode_batch("ab")):
        with pytest.raises(TypeError, match="expected several texts: give a list"):
            action()


MEMORY = """
import gc, resource, sys
from nanochat.bpe import native
change = {"long": str, "short": lambda text: text[:4], "foreign": lambda text: text + "\u00e9"}
text = open(sys.argv[1]).read()
core = native.core()
native.train(core, [text] * 2, 144)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
gc.disable()  # nothing may have to wait for it
text = change[sys.argv[2]](text)
native.train(core, (text + str(i) for i in range(int(SIZE) // len(text))), 144)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="ru_maxrss has another unit there")
@pytest.mark.parametrize("kind, size", [("long", "1e8"), ("short", "1e7"), ("foreign", "1e8")])
@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(kind, size):
    result = run_code(MEMORY.replace("SIZE", size), argparse.__file__, kind)
    # MiB; of 100 MB of text, or 2.5 million strings that would take 140 MB
    assert float(result.stdout.split()[-1]) < 90, result.stderr


# ---------------------------------------------------------------- encoding


@pytest.mark.slow
def test_ids_equal_tiktoken_and_tokenizers(tokenizer, encoder, merges):
    ranks = {token: i for i, token in enumerate(token_bytes(merges))}
    other = tiktoken.Encoding("x", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    library = LibraryEncoder(to_json(tokenizer.parts), SPLIT_PATTERN, np.uint32)
    texts = [*KINDS.values(), *random_texts(1000, seed=3), "x\ud800", "<|bos|>", "", " " * 60_000]
    ids, offsets = encoder.encode_batch(texts)
    for i, text in enumerate(texts):
        found = ids[offsets[i] : offsets[i + 1]].tolist()
        assert found == other.encode_ordinary(text), repr(text[:80])
        assert found == encoder.encode(text) == encode_with(text, merges)
    for found, expected in zip(library.encode_batch(texts), (ids, offsets), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert library.encode(KINDS["code"]) == encoder.encode(KINDS["code"])


def test_the_library_encodes_a_long_piece(tokenizer, encoder):
    library = LibraryEncoder(to_json(tokenizer.parts), SPLIT_PATTERN, np.uint32)
    long = "the" * 60_000 + " " * 60_000  # reference.py's time grows with the square of the length
    assert library.encode(long) == encoder.encode(long)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=80))
def test_round_trip_of_any_text(encoder, merges, text):
    ids = encoder.encode(text)
    assert decode(ids, merges) == text.encode()
    assert encoder.encode_batch([text, text])[0].tolist() == 2 * ids


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab", max_size=700), words=st.lists(st.text("ab", min_size=1, max_size=9)))
def test_pieces_of_any_length_equal_the_reference(core, text, words):
    found = native.train(core, [" ".join(words)], 74)
    ids = {pair: 256 + i for i, pair in enumerate(found)}
    assert encoder_of(core, found).encode(text) == reference.encode_piece(text.encode(), ids)


def test_merges_that_no_training_gives(core):
    # By pair, not by bytes: "abc" could also be (ab, c), but that is not what was learned.
    found = [(98, 99), (97, 98), (97, 256)]
    assert encoder_of(core, found).encode("abc ab") == [258, 32, 257]
    assert encoder_of(core, [(97, 98), (98, 99), (97, 257)]).encode("abc") == [256, 99]


@pytest.mark.parametrize("wrong, reason", [([(97, 257), (1, 2)], "later"), ([(1, 2)] * 2, "twice")])
def test_wrong_merges_are_refused(core, wrong, reason):
    with pytest.raises(RuntimeError, match=reason):
        encoder_of(core, wrong)


def test_other_ids_and_dtype(core, encoder, merges):
    ids = [65535 - i for i in range(256 + len(merges))]
    other = native.NativeEncoder(core, merges, ids, np.uint16)
    found = other.encode_batch(["some words here"])[0]
    assert found.dtype == np.uint16
    plain = encoder.encode("some words here")
    assert found.tolist() == [ids[i] for i in plain] == other.encode("some words here")


def test_empty_and_odd_texts(encoder, merges):
    ids, offsets = encoder.encode_batch([])
    assert ids.tolist() == [] and offsets.tolist() == [0]
    texts = ["", "a\0b", "", "x\ud800y", "\ud83d\ude42"]
    expected = [encode_with(text, merges) for text in texts]
    ids, offsets = encoder.encode_batch(texts)
    assert [ids[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)] == expected
    assert [encoder.encode(text) for text in texts] == expected
    assert encoder.encode("x\ud800y") == encoder.encode("x\ufffdy")
    assert encoder.encode("\ud83d\ude42") == encoder.encode("🙂")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["a" * 2_000_000, "ab" * 10**6, " " * 2_000_000, "\u3000" * 10**6])
def test_two_million_bytes_without_a_boundary(text, core, encoder, merges):
    ids = encoder.encode(text)  # in quadratic time this would not end
    assert decode(ids, merges) == text.encode()
    start = time.process_time()
    native.train(core, [text], 44)
    assert time.process_time() - start < 4


@pytest.mark.slow
def test_more_words_than_the_encoder_remembers(encoder, merges):
    halves = ["".join(letters) for letters in product("abcdefghijk", repeat=3)]
    words = [f" {a}{b}" for a in halves for b in halves][:1_100_000]
    assert len(set(words)) > 1 << 20  # that many are remembered
    text = "".join(words)
    first, second = encoder.encode_batch([text] * 2, 1)[0].reshape(2, -1)
    np.testing.assert_array_equal(first, second)
    assert decode(first.tolist(), merges) == text.encode()
    tail = "".join(words[-200:])
    assert encoder.encode(tail) == encode_with(tail, merges)


@pytest.mark.slow
def test_many_python_threads_share_an_encoder(encoder):
    texts = random_texts(2000, seed=4)
    expected = [encoder.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(encoder.encode, texts)) == expected
        batches = pool.map(lambda _: encoder.encode_batch(texts, 3)[0].tolist(), range(8))
        assert all(batch == sum(expected, []) for batch in batches)


INTERRUPTED = """
import os, signal, sys, threading, time
from nanochat.bpe import native

def interrupt():
    for _ in range(3):
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

core = native.core()
encoder = native.NativeEncoder(core, [(97, 98)], range(257), "u4")
text = "".join(f"w{i} x{i}y" for i in range(1_000_000))
work = {
    "train": lambda: native.train(core, [text] * 4, 144, num_threads=2),
    "encode": lambda: encoder.encode_batch([text] * 4, 2),
}[sys.argv[1]]
thread = threading.Thread(target=interrupt)
try:
    thread.start()
    work()
except KeyboardInterrupt:
    pass
print("alive")
"""


@pytest.mark.parametrize("work", ["train", "encode"])
@pytest.mark.slow
def test_interrupted_twice_while_a_batch_is_at_work(work):
    # The second interruption ends the waiting for the thread that is at work in the core.
    assert run_code(INTERRUPTED, work).returncode in (0, 1, -signal.SIGINT)


AT_THE_END = """
import threading, time
from nanochat.bpe import native
encoder = native.NativeEncoder(native.core(), [(97, 98)], range(257), "u4")
text = "".join(f"w{i} x{i}y" for i in range(1_000_000))
threading.Thread(target=lambda: encoder.encode(text), daemon=True).start()
time.sleep(0.1)
"""


@pytest.mark.slow
def test_the_interpreter_ends_while_a_thread_encodes():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", AT_THE_END], env=environment).returncode == 0


def test_a_failing_text_ends_encoding_and_training(core, encoder, merges):
    def texts():
        yield from [CODE] * 400  # more than a batch
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        encoder.encode_batch(texts())
    with pytest.raises(OSError, match="the disk is gone"):
        native.train(core, texts(), 44)
    assert decode(encoder.encode_batch([CODE])[0].tolist(), merges) == CODE.encode()


# ---------------------------------------------------------------- without the core, and compiling


TRAIN = """
from nanochat.tokenizer import Tokenizer
tokenizer = Tokenizer.train(["low lower lowest"] * 3, 320)
print(tokenizer.merges, tokenizer.encode("lower!"))
print(tokenizer.encode_ordinary_batch(["low", ""])[1].tolist())
"""
EXPECTED = """tokenizer: 48 of 320 ids stay unused: after 7 merges the text has no pair of tokens \
left. More text would give more
[(b'l', b'o'), (b'lo', b'w'), (b' ', b'low'), (b' low', b'e'), (b's', b't'), (b' lowe', b'r'), \
(b' lowe', b'st')] [257, 101, 114, 33]
[0, 1, 1]
"""


def lines_before_the_result(result: subprocess.CompletedProcess) -> list[str]:
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert result.stdout.endswith(EXPECTED), result.stdout
    return result.stdout.removesuffix(EXPECTED).splitlines()


@pytest.mark.slow
def test_without_a_compiler_one_line_says_so(tmp_path):
    (line,) = lines_before_the_result(run_code(TRAIN, PATH=str(tmp_path), CXX=""))
    for part in ("looked for $CXX, g++, clang++, c++", "a hundred times", "apt install g++"):
        assert part in line


@pytest.fixture
def empty(tmp_path, monkeypatch) -> cpp.Source:
    """A source that compiles at once, in a base folder where nothing is compiled yet."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    (tmp_path / "empty.cpp").write_text("")
    return native.SOURCE._replace(files=(tmp_path / "empty.cpp",), functions={})


def test_a_compiler_with_arguments_and_one_that_is_not_there(empty, monkeypatch, capsys):
    monkeypatch.setenv("CXX", " ")
    plain = cpp_compiler()
    monkeypatch.setenv("CXX", f"{plain} -DNANOCHAT")
    assert cpp_compiler() == f"{plain} -DNANOCHAT"
    made = cpp.compile_library(empty, plain)
    time_made = made.stat().st_mtime_ns
    assert cpp.compile_library(empty, plain) == made and made.stat().st_mtime_ns == time_made
    assert cpp.compile_library(empty, cpp_compiler()) != made
    monkeypatch.setenv("CXX", "/nowhere/g++-99 -m64")
    assert cpp.load(empty, cpp_compiler(), "nothing is done")
    assert "CXX='/nowhere/g++-99 -m64' is not there" in capsys.readouterr().out


WRITES_JUNK = '[ "${@: -1}" = --version ] || echo junk > "${@: -1}"'


@pytest.mark.parametrize("script", ["echo sorry >&2; exit 1", "exit 0", WRITES_JUNK])
def test_a_broken_compiler(empty, tmp_path, capsys, script):
    compiler = tmp_path / "broken"
    compiler.write_text(f"#!/usr/bin/env bash\n{script}\n")
    compiler.chmod(0o755)
    assert cpp.load(empty, str(compiler), "nothing is done") is None
    told = capsys.readouterr().out
    assert f"the C++ compiler {compiler} does not work" in told and "nothing is done" in told
    assert ("sorry" in told) == ("sorry" in script)


def test_where_nothing_can_be_kept_a_line_says_so(empty, tmp_path, capsys):
    (tmp_path / "bpe").write_text("a file")
    assert cpp.load(empty, cpp_compiler(), "nothing is done") is None
    assert "nothing is done" in capsys.readouterr().out


def test_compiling_at_once(empty, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: cpp.compile_library(empty, cpp_compiler()), range(4)))
    assert set((tmp_path / "bpe").iterdir()) == paths  # nothing is left lying about
    assert len(paths) == 1


# ---------------------------------------------------------------- progress


def test_progress_is_told(core, monkeypatch):
    steps = {"counting words": 0, "learning merges": 0}

    @contextmanager
    def progress(description, total, unit=""):
        yield lambda n=1: steps.update({description: steps[description] + n})

    monkeypatch.setattr(native, "progress", progress)
    native.train(core, [CODE] * 3, 644)
    assert steps == {"counting words": 3 * len(CODE.encode()), "learning merges": 644}
