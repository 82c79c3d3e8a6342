"""What people's own files and folders hold: each case is one that a user has, or could have.

Of each it is said what is read, or which error names file, row and what to do.
"""

import gzip
import json
import os
import re
import resource
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from nanochat.common import ConfigError, DataError
from nanochat.data.rows import read_rows
from nanochat.data.sources import open_source
from nanochat.data.token_shards import tokenize_source
from nanochat.dataloader import PackedRows
from nanochat.files import base_dir, user_path
from nanochat.tokenizer import Tokenizer

GOOD = b'{"text": "good"}\n'


def texts(path, split="train", **settings) -> list[str]:
    source = open_source(str(path), **settings)
    return [text for shard in source.shards(split) for text in shard.texts()]


# ---------------------------------------------------------------- Parquet: every type of text

BYTES = pa.array([b"good", b"caf\xe9", None])
READ = ["good", "caf\ufffd", None]
STRINGS = BYTES.cast(pa.string(), safe=False)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (STRINGS, READ),
        (BYTES.cast(pa.large_binary()).cast(pa.large_string(), safe=False), READ),
        (BYTES.cast(pa.binary_view()).cast(pa.string_view(), safe=False), READ),
        (BYTES, READ),
        (BYTES.cast(pa.large_binary()), READ),
        (BYTES.cast(pa.binary_view()), READ),
        (pa.array([b"good", b"caf\xe9", None], pa.binary(4)), READ),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array(["é", None], pa.large_string()).dictionary_encode(), ["é", None]),
        (pa.array(['{"a": 1}'], pa.json_()), ['{"a": 1}']),
        (pa.nulls(2), [None, None]),
        (pa.array([1, 2]), [1, 2]),
        (pa.ListArray.from_arrays([0, 2, 3], STRINGS), [["good", "caf\ufffd"], [None]]),
        (pa.LargeListArray.from_arrays([0, 1], STRINGS), [["good"]]),
        (pa.StructArray.from_arrays([STRINGS], ["role"]), [{"role": text} for text in READ]),
        (
            pa.ListArray.from_arrays([0, 2], pa.StructArray.from_arrays([STRINGS], ["role"])),
            [[{"role": "good"}, {"role": "caf\ufffd"}]],
        ),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_every_arrow_type_that_holds_text(tmp_path, column, expected):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert [row["text"] for row in read_rows(tmp_path / "a.parquet", ["text"])] == expected


def test_what_arrow_itself_cannot_read_is_named(tmp_path):
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1]), STRINGS.slice(0, 2))
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet cannot be read after row 0: Invalid UTF8"):
        list(read_rows(tmp_path / "a.parquet"))


# ---------------------------------------------------------------- JSON lines: every malformed row


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "Expecting property name"),
        (b'{"text": "a"', "Expecting ',' delimiter"),
        (b'{"text": "a"}}', "Extra data"),
        (b"{'text': 'a'}", "Expecting property name"),
        (b'{"text": "a",}', "Expecting property|Illegal trailing"),
        (b'{"text": "a\tb"}', "Invalid control character"),
        (b'{"text": "\\x"}', "Invalid .escape"),
        (b'{"text": NULL}', "Expecting value"),
        (b'{"n": ' + b"1" * 4301 + b"}", "Exceeds the limit"),
        (b'{"a":' * 100_000, "recursion|Stack"),
        (b'["a"]', "found list"),
        (b'"a"', "found str"),
        (b"null", "found NoneType"),
        (b"17", "found int"),
        (b"text", "Expecting value"),
        (b"\0" * 16, "Expecting value"),
        (b"\xff\xfe", "Expecting value"),
        (b"<<<<<<< HEAD", "Expecting value"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_malformed_line_is_an_error_or_left_out(tmp_path, line, message, capsys):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD * 5)
    with pytest.raises(DataError, match=rf"a.jsonl:3: .*({message}).* one JSON object"):
        list(read_rows(path))
    assert len(list(read_rows(path, max_malformed=0.2))) == 6
    printed = capsys.readouterr().out
    assert "left out: " in printed and "1 malformed rows left out: 1 not one JSON object" in printed


def test_malformed_rows_are_counted_and_three_are_printed(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD * 90 + b"{\n" * 4 + b"[]\n")
    assert len(list(read_rows(path, max_malformed=0.06))) == 90
    printed = capsys.readouterr().out
    assert printed.count("left out: ") == 3 + 1
    assert f"{path}: 5 malformed rows left out: 5 not one JSON object a line" in printed


def test_more_than_the_share_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD * 90 + b"{\n" * 10)
    with pytest.raises(DataError, match="10 of the 100 rows so far.*--max-malformed=0.09"):
        list(read_rows(path, max_malformed=0.09))
    path.write_bytes(b"{\n" * 500 + GOOD * 100_000)  # stops before it has read all
    with pytest.raises(DataError, match="11 of the 11 rows so far"):
        list(read_rows(path, max_malformed=0.01))
    with pytest.raises(DataError, match=r"a.jsonl:1: .*1 of the 1 rows so far.*--max-malformed=0$"):
        list(read_rows(path, max_malformed=0.0))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (GOOD * 2, ["good"] * 2),
        (GOOD.rstrip(), ["good"]),
        (b"\n\n \n" + GOOD + b"\n", ["good"]),
        (b"\xef\xbb\xbf" + GOOD, ["good"]),
        (GOOD.decode().encode("utf-16"), ["good"]),
        (b"\xfe\xff" + GOOD.decode().encode("utf-16-be"), ["good"]),
        (GOOD.replace(b"\n", b"\r\n") * 2, ["good"] * 2),
        (GOOD.replace(b"\n", b"\r") * 2, ["good"] * 2),
        (b'{"text": "na\xefve"}', ["na\ufffdve"]),
        (b'{"text": "a\xe2\x80\xa8b"}', ["a\u2028b"]),
        (b'{"text": "a", "text": "b"}', ["b"]),
        (b'{"text": "a", "n": NaN}', ["a"]),
        (b'{"text": "\\u0000"}', ["\0"]),
        (b'{"text": "' + b"x" * 3_000_000 + b'"}', ["x" * 3_000_000]),
        (b"", []),
        (b"\xef\xbb\xbf", []),
    ],
    ids=["two", "no-end", "blank", "bom", "utf16", "utf16be", "crlf", "cr", "latin1", "u2028",
         "duplicate-key", "nan", "nul", "huge", "empty", "bom-alone"],
)  # fmt: skip
def test_lines_as_editors_and_systems_write_them(tmp_path, content, expected):
    (tmp_path / "a.jsonl").write_bytes(content)
    assert [row["text"] for row in read_rows(tmp_path / "a.jsonl")] == expected


@pytest.mark.parametrize("packed", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_cut_archive_is_named(tmp_path, packed, share):
    data = packed(b"".join(json.dumps({"text": os.urandom(9).hex()}).encode() + b"\n"
                           for _ in range(20_000)))  # fmt: skip
    path = tmp_path / f"a.jsonl.{'gz' if packed is gzip.compress else 'zst'}"
    path.write_bytes(data[: int(len(data) * share)])
    if share == 0:  # an empty file is an empty archive
        assert not list(read_rows(path))
        return
    with pytest.raises(DataError, match=r"a.jsonl.\w+ cannot be read after row \d+"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl.gz", GOOD), ("a.jsonl.zst", GOOD), ("a.parquet", b""), ("a.parquet", GOOD),
     ("a.parquet", b"PAR1" * 3), ("a.jsonl.gz", gzip.compress(GOOD) + b"rest")],
    ids=["plain-gz", "plain-zst", "empty-parquet", "json-parquet", "marks-parquet", "gz-and-more"],
)  # fmt: skip
def test_file_that_is_not_what_its_name_says(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        list(read_rows(tmp_path / name))


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_other_columns_are_named_and_one_can_be_chosen(tmp_path, name):
    rows = [{"content": f"text {i}", "id": i} for i in range(3)]
    if name == "a.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: .*'text'; its columns are content, id.*--column"):
        texts(tmp_path / name)
    both = texts(tmp_path / name, column="content"), texts(tmp_path / name, "val", column="content")
    assert sorted(both[0] + both[1]) == ["text 0", "text 1", "text 2"] and len(both[1]) == 1
    assert len({open_source(str(tmp_path / name), column=c).fingerprint for c in "ab"}) == 2
    with pytest.raises(DataError, match="'id'; its columns are content, id"):
        texts(tmp_path / name, column="id")


# ---------------------------------------------------------------- folders

COPIES = [
    ".ipynb_checkpoints/b-checkpoint.jsonl",
    "._b.jsonl",
    ".b.jsonl.swp",
    ".#b.jsonl",
    "#b.jsonl#",
    "b.jsonl~",
    "~$b.jsonl",
    "__MACOSX/b.jsonl",
    ".git/b.jsonl",
    ".cache/huggingface/b.jsonl",
    ".Trash-0/files/b.jsonl",
    ".nfs0001.jsonl",
    ".DS_Store",
    ".b.jsonl",
]


@pytest.mark.parametrize("name", COPIES)
def test_hidden_names_and_copies_are_left_out_and_counted(tmp_path, name, capsys):
    for path in ("a.jsonl", "b.jsonl", name):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(GOOD.replace(b"good", path[:1].encode()))
    assert (texts(tmp_path), texts(tmp_path, "val")) == (["a"], ["b"])
    assert "files left out: 1 hidden or an editor's copy" in capsys.readouterr().out


def test_a_hidden_folder_can_be_the_data(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.jsonl").write_bytes(GOOD * 2)
    assert texts(tmp_path / ".cache") == ["good"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: (p / "c.jsonl").symlink_to(p / "absent"), "1 a broken link"),
        (lambda p: (p / "c.jsonl").symlink_to(p / "c.jsonl"), "1 a broken link"),
        (lambda p: os.mkfifo(p / "c.jsonl"), "1 a broken link or no regular file"),
        (lambda p: (p / "c.jsonl").touch(), "1 empty"),
        (lambda p: (p / "c.csv").write_text("text\na"), r"1 not \*.parquet"),
        (lambda p: (p / "LICENSE").write_text("MIT"), r"1 not \*.parquet"),
        (lambda p: (p / "c.jsonl").mkdir(), None),
        (lambda p: (p / "c").symlink_to(p), None),
    ],
    ids=["nowhere", "itself", "fifo", "empty", "csv", "no-ending", "folder", "loop"],
)
def test_what_is_no_file_of_text_is_left_out_and_counted(tmp_path, make, reason, capsys):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(GOOD)
    make(tmp_path)
    assert (texts(tmp_path), texts(tmp_path, "val")) == (["good"], ["good"])
    printed = capsys.readouterr().out
    assert re.search(reason, printed) if reason else "left out" not in printed


@pytest.mark.parametrize(
    "name",
    ["a b.jsonl", "a\nb.jsonl", "数据.jsonl", "é.JSONL", "a'b\".jsonl", "-a.jsonl", "a:b,c.jsonl",
     "x/y/z.jsonl", "x.jsonl/y.jsonl", "%2F.jsonl", "日" * 80 + ".jsonl", "a" * 240 + ".jsonl",
     os.fsdecode(b"caf\xe9.jsonl")],
    ids=ascii,
)  # fmt: skip
def test_names_of_every_kind_are_read_and_tokenized(tmp_path, name, base_dir):
    tokenizer = Tokenizer.train(["good"], vocab_size=320)
    (tmp_path / "data").mkdir()
    for path in (name, "zz/val.jsonl"):
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / path).write_bytes(GOOD)
    source = open_source(str(tmp_path / "data"))
    assert tokenize_source(source, tokenizer, "train").num_tokens > 0
    assert tokenize_source(source, tokenizer, "val").num_tokens > 0


@pytest.mark.parametrize("name", ["d" * 250, "日本語のデータ", "a b\nc", ".hidden", "-", "..."])
def test_folders_of_every_name(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.txt").write_text("some words of a text")
    source = open_source(str(tmp_path / name))
    tokenizer = Tokenizer.train(["good"], vocab_size=320)
    assert tokenize_source(source, tokenizer, "train").num_tokens > 0


def test_linked_folders_are_followed_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jsonl").write_bytes(GOOD * 3)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "z.jsonl").write_bytes(GOOD)
    for name in ("one", "two"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere")
    assert texts(tmp_path / "data") == ["good"] * 3
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert texts(tmp_path / "link") == ["good"] * 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match="closed cannot be read: Permission denied"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("name", ["fifo", "data.csv", "empty-folder", "absent"])
def test_a_path_that_holds_no_text(tmp_path, name):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "data.csv").write_text("text\na")
    (tmp_path / "empty-folder").mkdir()
    with pytest.raises(DataError, match=f"{name}.*(holds no text: expected|is no folder, file)"):
        open_source(str(tmp_path / name))


# ---------------------------------------------------------------- training and validation


def test_documents_in_both_splits_are_counted(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(GOOD * 2 + b'{"text": "other"}\n')
    (tmp_path / "b - Copy.jsonl").write_bytes(GOOD)
    tokenizer = Tokenizer.train(["good"], vocab_size=320)
    tokenize_source(open_source(str(tmp_path)), tokenizer, "train")
    assert "2 documents that are validation too" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("word " * 17_000, "word "),
        ("a line of words\n" * 1000, "words\n"),
        ("字" * 1000, "字"),
        ("a heading\n" + "x" * 5000, "x"),
        ("two words", "s"),
        ("ab", "b"),
        ("one\ntwo\n\n\n", "o\n\n\n"),
    ],
    ids=["words", "lines", "no-space", "heading", "two-words", "two-letters", "blank-end"],
)
def test_the_end_of_a_single_text_is_held_out(tmp_path, text, ending):
    (tmp_path / "notes.txt").write_text(text)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text("\n \n")
    (train,), (val,) = texts(tmp_path), texts(tmp_path, "val")
    assert train + val == text and val.endswith(ending) and train.strip() and val.strip()
    assert len(val) <= max(len(text) * 0.15, len(ending))


def test_text_of_other_encodings(tmp_path):
    cases = {"utf-16": "naïve 漢字", "utf-8-sig": "naïve 漢字", "latin-1": "na\ufffdve"}
    for encoding, expected in cases.items():
        path = tmp_path / f"{encoding}.txt"
        path.write_bytes(("naïve" if encoding == "latin-1" else expected).encode(encoding))
        assert "".join(texts(path) + texts(path, "val")) == expected
    path = tmp_path / "no-mark.txt"
    path.write_bytes("two words".encode("utf-16-le"))
    source = open_source(str(path))
    assert list(source.shards("train")[0].texts())
    assert source.counts["documents with the character NUL: not text, or UTF-16"] == 1


def lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("files", "train", "val"),
    [
        ({"a.jsonl": lines({"text": "a\ud800b"}, {"text": "c"})}, 1, 1),
        ({"a.jsonl": lines({"text": ["a"]}, {"text": 3}, {"text": "x"}, {"text": "y"})}, 1, 1),
        ({"A.TXT": "hello there", "B.MD": "and more"}, 1, 1),
        ({"a.txt": "x" * 300_000}, 1, 1),
        ({"a.txt": "<|bos|> hello <|user_end|> there"}, 1, 1),
        ({"a.txt": "hello there you".encode("utf-32")}, 1, 1),
        ({"a.txt": bytes(range(256)) * 20}, 1, 1),
        ({"a.txt": "one", "b.jsonl": lines({"text": "two"})}, 1, 1),
        ({"a.md": "1", "b.jsonl": lines({"text": "2"}), "c.jsonl": lines({"text": "3"})}, 2, 1),
        ({"a.jsonl": "\n\n", "b.jsonl": lines({"text": "two"})}, 0, 1),
        ({"a.jsonl": lines({"text": "one"}), "b.jsonl": "\n\n"}, 1, 0),
        ({"a.txt": " \n"}, 0, 0),
    ],
    ids=["surrogate", "no-strings", "upper-case", "long-line", "markup", "utf32", "bytes",
         "text-and-table", "text-and-tables", "no-train", "no-val", "blank"],
)  # fmt: skip
def test_what_a_folder_gives(tmp_path, files, train, val):
    """Documents of each split that have tokens; without any, rows say what to do."""
    (tmp_path / "data").mkdir()
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        (tmp_path / "data" / name).write_bytes(data)
    source = open_source(str(tmp_path / "data"))
    tokenizer = Tokenizer.train(["good"], vocab_size=320)
    for split, expected in (("train", train), ("val", val)):
        shards = tokenize_source(source, tokenizer, split)
        assert (
            sum(int((shard.offsets[1:] > shard.offsets[:-1]).sum()) for shard in shards.shards)
            == expected
        )
        if expected:
            PackedRows(shards, 16, seed=0).row(0)
        else:
            with pytest.raises(
                DataError, match="found no token, .* Add text: of two documents one"
            ):
                PackedRows(shards, 16, seed=0)


# ---------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("given", "expected"),
    [("~", ""), ("~/data", "data"), ("~/a b/c", "a b/c"), ("./~", None), ("a/~/b", None),
     ("$HOME/x", None)],
)  # fmt: skip
def test_a_users_path(given, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path(given) == (Path(given) if expected is None else tmp_path / expected)


def test_a_home_that_is_not_there():
    with pytest.raises(ConfigError, match="~nobody-of-this-name/x: there is no such home folder"):
        user_path("~nobody-of-this-name/x")


def test_base_folder_of_odd_places(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for given, expected in {
        "": ".cache/nanochat",
        "~/runs": "runs",
        "here": "here",
        "a b/日本": "a b/日本",
        "here/": "here",
    }.items():
        monkeypatch.setenv("NANOCHAT_BASE_DIR", given)
        assert base_dir() == tmp_path / expected and base_dir().is_dir()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "here")
    before = base_dir()
    monkeypatch.chdir("here")
    assert before.is_absolute()
    (tmp_path / "file").touch()
    for given in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere", "x" * 300):
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(given))
        with pytest.raises(ConfigError, match="NANOCHAT_BASE_DIR names the folder"):
            base_dir()


def test_a_limit_on_file_sizes_is_named(tmp_path):
    """As a full disk or a quota: the folder, and what to do; what is finished stays."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "%s"}\n' % (b"0123456789 " * 20_000))
    (tmp_path / "b.jsonl").write_bytes(GOOD)
    tokenizer, source = Tokenizer.train(["good"], vocab_size=320), open_source(str(tmp_path))
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(DataError, match="cannot be written while tokenizing a.jsonl: .*large"):
            tokenize_source(source, tokenizer, "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert tokenize_source(source, tokenizer, "train").num_tokens > 1000
