"""What is found in a text before training: every fault is made by hand, clean text has none."""

import gzip
import json
import os
import random

import pytest

from nanochat.common import DataError
from nanochat.configurator import parse
from nanochat.evaluation import data_check
from nanochat.evaluation.data_check import check, count_scripts, fertility, language, rules
from nanochat.tokenizer import Tokenizer
from scripts.data_check import Config, main

CLEAN = "Der Zug fährt heute später ab, und der Bahnsteig ist nicht der, der auf dem Schild steht."


def report_of(*texts):
    return check([("part", lambda counts: iter(texts))])[0]


def run(capsys, folder, *flags):
    """The report of `data_check FOLDER --json`."""
    main(parse(Config, [str(folder), "--vocab-size=320", "--json", *flags]))
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("U+FFFD", "Stra\ufffde"),
        ("NUL", "a\0b"),
        ("control", "a\x07b"),
        ("Windows-1252 (Ã©", "cafÃ© con leche"),
        ("Windows-1252 (Ã©", "it isnâ€™t"),
        ("Cyrillic", "Ïðèâåò, êàê äåëà"),
        ("HTML", "one<br/>two"),
        ("HTML", "R&amp;D"),
        ("e-mail", "write to ann.lee@mail.example.org now"),
        ("private keys", "-----BEGIN RSA PRIVATE KEY-----\nMIIE"),
        ("keys of services", "AKIA" + "A1B2" * 4),
        ("keys of services", "token ghp_" + "a1B2" * 9),
        ("passwords", "password = 'correct-horse'"),
    ],
)
def test_a_fault_is_found_and_clean_text_has_none(what, text):
    (found,) = report_of(CLEAN, text)["findings"].items()
    assert what in found[0] and found[1]["documents"] == 1
    assert found[1]["examples"][0].startswith("part, document 2: ")


@pytest.mark.parametrize(
    "text",
    [
        CLEAN,
        "¿Qué? «Sí», dijo él. Señor Ñuñez, AÑO 5",
        "à « b »",
        "ÉTÉ À ÖL Übergrößenträger",
        "a @b",
    ]
    + ["x < y & z", "E = mc²; 5 °C – 10 €", "Привет, как дела", "今日は天気がいい", "password: no"],
)
def test_other_languages_and_marks_are_no_fault(text):
    assert not report_of(text)["findings"]


def test_no_more_of_a_secret_is_shown_than_its_beginning():
    key = "sk-" + "Zq9" * 12
    assert "Zq9Zq9" not in json.dumps(report_of(f"my key is {key}"))


def test_scripts_are_counted_by_character():
    assert count_scripts("ab é 5 Жж 日本 ひ 한") == {
        "Latin": 3, "Cyrillic": 2, "Han": 2, "Kana": 1, "Hangul": 1, "other": 7,
    }  # fmt: skip


def test_no_character_is_of_two_scripts():
    ranges = sorted(r for ranges in rules()["scripts"].values() for r in ranges)
    assert all(a[0] < a[1] <= b[0] for a, b in zip(ranges, ranges[1:], strict=False))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (CLEAN, "German"),
        ("The boat left before the fog had gone, and that was the end of it.", "English"),
        ("El barco salió por la mañana y los niños miraban las olas del mar.", "Spanish"),
        ("Le bateau est dans le port et les enfants sont sur la plage.", "French"),
        ("0101 1101", "unknown"),
        ("", "unknown"),
    ],
)
def test_language_by_common_words(text, name):
    assert language(text) == name


def words(rng, n):
    return " ".join("".join(rng.choices("abcdefghij", k=6)) for _ in range(n))


def test_duplicates_exact_and_near():
    rng = random.Random(0)
    texts = [words(rng, 300) for _ in range(30)]
    edited = texts[3].split()
    edited[50] = "changed"
    half = " ".join([*texts[4].split()[:150], words(rng, 150)])  # a third of the pieces in common
    found = report_of(*texts, texts[7], " ".join(edited), half)["findings"]
    exact, near = found.values()
    assert [exact["documents"], near["documents"]] == [1, 1]
    assert exact["examples"] == ["part, document 31 = part, document 8"]
    assert near["examples"] == ["part, document 32 = part, document 4"]


def test_of_many_documents_a_share_is_compared_with_all_its_copies(monkeypatch):
    monkeypatch.setattr(data_check, "MOST_DOCUMENTS", 64)
    rng = random.Random(1)
    texts = [words(rng, 20) for _ in range(150)]
    (found,) = report_of(*texts, *texts)["findings"].items()
    compared = int(found[0].split("among ")[1].split()[0])
    assert 8 <= compared < 64 and found[1]["documents"] == compared // 2


def test_the_sample_and_the_lines_are_bounded(monkeypatch):
    monkeypatch.setattr(data_check, "MOST_CHARACTERS", 3000)
    monkeypatch.setattr(data_check, "MOST_LINES", 40)
    rng = random.Random(2)
    footer = "Subscribe to our newsletter today"
    texts = [f"{words(rng, 20)}\n{footer}" for _ in range(200)]
    report, sample = check([("part", lambda counts: iter(texts))])
    assert 0 < sum(map(len, sample)) <= 3000
    assert report["notes"][0] == f"200 times the same line: {footer}"
    assert report["repeated_characters"] == 199 * len(footer)


def test_fertility_by_script():
    tokenizer = Tokenizer.train([CLEAN] * 3, 320)
    found = fertility(tokenizer, ["ab cd\n\u0436 \u0436\n", "5\n"])
    assert found["Latin"]["characters"] == 6 and found["Latin"]["words"] == 2
    assert found["Cyrillic"] == {"characters": 4, "words": 2, "tokens": 6}
    assert found["other"]["characters"] == 2


# ---------------------------------------------------------------- folders, through the command


def test_a_folder_of_every_kind_of_file(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(CLEAN)
    (tmp_path / "latin1.txt").write_bytes("Straße".encode("latin-1"))
    (tmp_path / "utf16.txt").write_bytes("\ufeffgrüße".encode("utf-16-le"))
    (tmp_path / "no_mark.txt").write_bytes("hello".encode("utf-16-le"))
    (tmp_path / "huge.md").write_text("x" * 250_000)  # one line
    rows = ['{"text": "gut"}', "{broken", '{"text": ""}', '{"text": "gut"}', "7"]
    (tmp_path / "b.jsonl").write_text("\n".join(rows))
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write('{"text": "auch"}\n')
    (tmp_path / "d.jsonl").write_text('{"body": "another column"}\n')
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "empty.txt").write_text("")
    report = run(capsys, tmp_path)
    notes = "\n".join(report["notes"])
    assert report["files"] == 8
    assert report["documents"] == 4 + 2 + 2 + 1  # the long line is cut in two
    assert report["rows without text, left out"] == 2
    assert "2 malformed rows left out: 2 not one JSON object a line" in notes
    assert "training would stop here" in notes and "Name the one with the text: --column" in notes
    assert "1 not *.parquet" in notes and "1 empty" in notes
    documents = {what.split(",")[0]: hit["documents"] for what, hit in report["findings"].items()}
    assert documents["U+FFFD"] == 1
    assert [n for what, n in documents.items() if "NUL" in what] == [1]
    assert documents["exact duplicates of earlier ones"] >= 1
    assert report["plan"]["depth"] is None and report["tokens"] > 0


def test_the_page_is_printed_and_compares_a_tokenizer(tmp_path, capsys):
    text = tmp_path / "my.txt"
    text.write_text("\n".join(f"{CLEAN} {i}" for i in range(50)))
    Tokenizer.train(["the cat sat on the mat"], 320).save(tmp_path / "tokenizer")
    flags = ["--vocab-size=320", f"--tokenizer={tmp_path / 'tokenizer'}"]
    main(parse(Config, [str(text), *flags]))
    printed = capsys.readouterr().out
    assert "languages: German 100.0%" in printed and "new, 320 ids" in printed
    assert "--target-tokens=" in printed


@pytest.mark.parametrize("kind", ["empty", "binary", "missing", "no column", "other file"])
def test_what_is_no_text_is_an_error_that_says_why(tmp_path, kind):
    path, why = tmp_path / "data", "holds no text"
    if kind == "other file":
        path = tmp_path / "data.doc"
        path.write_text("text")
    elif kind == "missing":
        why = "is no folder, file or hub id"
    else:
        path.mkdir()
    if kind == "binary":
        (path / "a.bin").write_bytes(b"\0\1")
    if kind == "no column":
        why = "--column"
        (path / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(DataError, match=why):
        main(parse(Config, [str(path), "--vocab-size=320"]))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_checked(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(CLEAN)
    (tmp_path / "b.txt").write_text(CLEAN)
    (tmp_path / "b.txt").chmod(0)
    report = run(capsys, tmp_path)
    assert report["documents"] == 1 and "b.txt cannot be read" in "\n".join(report["notes"])


def test_a_damaged_archive_is_named_and_the_rest_is_checked(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(CLEAN)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 99)[:-9])
    report = run(capsys, tmp_path)
    assert "b.jsonl.gz cannot be read" in "\n".join(report["notes"])
