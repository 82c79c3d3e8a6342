"""Facts of a user's own table: what a table may look like, and the questions made of it."""

import json
import random
from pathlib import Path

import pytest

from nanochat.common import DataError
from nanochat.conversation import validate
from scripts.tok_eval import Config as TokEvalConfig
from scripts.tok_eval import counts_of, own_texts
from tasks.catalog import make_task, mixture
from tasks.identity import Identity
from tasks.table import TableFacts, read_table
from tasks.task import gold_completion, plain
from tasks.wordings import compose, form, read_wordings, wordings_beside

SPANISH = Path(__file__).resolve().parents[1] / "runs" / "own_language"
QUESTION = {
    "kind": "capital",
    "prompts": ["Was ist die Hauptstadt von {Land}?", "{Land}: Hauptstadt"],
    "held_out": ["Welche Stadt ist die Hauptstadt von {Land}?"],
    "answers": ["{Hauptstadt}."],
    "expect": ["{Hauptstadt}"],
}
ROWS = [{"Land": "Österreich", "Hauptstadt": "Wien"}, {"Land": "Peru", "Hauptstadt": "Lima"}]


def write(tmp_path, table, *questions):
    """A table and its questions; the path of the table."""
    path = tmp_path / "länder.csv"
    path.write_bytes(table if isinstance(table, bytes) else table.encode())
    lines = (json.dumps(question) + "\n" for question in questions or [QUESTION])
    path.with_suffix(".jsonl").write_text("".join(lines))
    return path


@pytest.mark.parametrize(
    "table",
    [
        "Land,Hauptstadt\nÖsterreich,Wien\nPeru,Lima\n",
        "Land;Hauptstadt\r\nÖsterreich;Wien\r\n\r\nPeru;Lima",
        "\n\nLand\tHauptstadt\nÖsterreich\tWien\nPeru\tLima\n;;\n".replace(";;", "\t"),
        "sep=;\nLand;Hauptstadt\nÖsterreich;Wien\nPeru;Lima\n",
        '"Land","Hauptstadt"\n"Österreich","Wien"\n"Peru"," Lima "\n',
        "Land;Hauptstadt;;\nÖsterreich;Wien;;\nPeru;Lima;;\n;;;\n",
        "\ufeffLand|Hauptstadt\nÖsterreich|Wien\nPeru|Lima\n",
        "\ufeffLand,Hauptstadt\nÖsterreich,Wien\nPeru,Lima\n".encode("utf-16-le"),
    ],
    ids=[
        "commas",
        "semicolons",
        "tabs",
        "Excel's first line",
        "quotes",
        "empty columns",
        "mark",
        "UTF-16",
    ],
)
def test_every_way_to_write_a_table_gives_the_same(tmp_path, table):
    assert read_table(write(tmp_path, table)) == ROWS


def test_a_quoted_cell_holds_separators_quotes_and_line_ends(tmp_path):
    path = write(tmp_path, 'Land,Hauptstadt\n"a, ""b""\nc",d\n')
    assert read_table(path) == [{"Land": 'a, "b" c', "Hauptstadt": "d"}]


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("Land,Hauptstadt\n", "no line below its header, Land, Hauptstadt"),
        ("Land,Hauptstadt\nPeru,Lima\nChile\n", ":3: 1 cells, expected 2"),
        ("Land,Hauptstadt\nKorea, Süd,Seoul\n", ":2: 3 cells, expected 2.* in double quotes"),
        ("Land,Land\nPeru,Lima\n", "expected different plain names"),
        ("Land,{x}\nPeru,Lima\n", "expected different plain names"),
        ("Land,,x\nPeru,Lima,y\n", "expected different plain names"),
        ('Land,Hauptstadt\nPeru,"Lima\n', ":2: unexpected end of data"),
        ("Land,Hauptstadt\nPeru," + "x" * 200_000, "field larger than field limit"),
        ("Land,Hauptstadt\nKöln,x\n".encode("latin-1"), ":2: not UTF-8"),
        (b"Land,Hauptstadt\nPeru,Li\0ma\n", ":2: a NUL"),
    ],
)
def test_a_table_that_cannot_be_used_names_the_line(tmp_path, table, why):
    with pytest.raises(DataError, match=why):
        read_table(write(tmp_path, table))


@pytest.mark.parametrize("name", ["missing.csv", "facts.xlsx", "folder.csv"])
def test_what_is_no_table(tmp_path, name):
    (tmp_path / "facts.xlsx").write_bytes(b"PK\3\4")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"expected a file, \*\.csv"):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"prompts": ["Wo liegt {Ort}?"]},
            r"\['Ort'\], expected columns of länder.csv: Land, Haup",
        ),
        ({"prompts": ["Wo liegt das?"]}, "asks about no line"),
        ({"prompts": ["Wo liegt {Land?"]}, "asks about no line|a brace too many"),
        ({"prompts": []}, "expected a list of texts"),
        ({"held_out": ["was ist die hauptstadt von {Land}"]}, "is held out and also a prompt"),
        ({"answers": ["In {Land}."]}, "answer 'In Österreich.' has none of"),
        ({"kind": 7}, "expected a text"),
    ],
)
def test_questions_that_do_not_fit_the_table(tmp_path, change, why):
    path = write(tmp_path, "Land,Hauptstadt\nÖsterreich,Wien\n", QUESTION | change)
    with pytest.raises(DataError, match=why):
        TableFacts("train", path=path)


def test_without_questions_the_error_shows_how_a_line_looks(tmp_path):
    path = write(tmp_path, "Land,Hauptstadt\nPeru,Lima\n")
    path.with_suffix(".jsonl").unlink()
    with pytest.raises(DataError, match="länder.jsonl is missing") as error:
        TableFacts("train", path=path)
    example = str(error.value).partition("for example ")[2]
    path.with_suffix(".jsonl").write_text(example)
    assert len(TableFacts("test", path=path)) == 1  # the example itself works


def test_facts_that_contradict_themselves_or_have_holes_are_left_out(tmp_path, capsys):
    table = "Land,Hauptstadt\nBolivien,Sucre\nBolivien,La Paz\nPeru,Lima\nPeru,Lima\nNauru,\n"
    task = TableFacts("test", path=write(tmp_path, table))
    assert [task[0]["messages"][-1]["content"]] == ["Lima."] and len(task) == 1
    printed = capsys.readouterr().out
    for part in ("1 with an empty cell", "2 of a question with several answers", "1 that stand"):
        assert part in printed
    with pytest.raises(DataError, match="gives no fact"):
        TableFacts("test", path=write(tmp_path, "Land,Hauptstadt\nNauru,\n"))


def test_the_test_split_needs_held_out_phrases(tmp_path):
    path = write(tmp_path, "Land,Hauptstadt\nPeru,Lima\n", QUESTION | {"held_out": []})
    assert len(TableFacts("train", path=path)) == 9
    with pytest.raises(DataError, match="without held_out prompts"):
        TableFacts("test", path=path)


# ---------------------------------------------------------------- the Spanish files that we ship


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "name", ["facts@paises.csv", "identity@identidad.jsonl", "unknown@no_se.jsonl"]
)
def test_gold_is_right_in_spanish(split, name):
    name, _, file = name.partition("@")
    task = make_task(name, split, str(SPANISH / file), size=200)
    asked = set()
    for i in range(200):
        conversation = task[i]
        validate(conversation, f"{name}:{i}")
        assert task.evaluate(conversation, gold_completion(conversation))
        assert not task.evaluate(conversation, "I may not know.")
        asked.add(conversation["messages"][0]["content"])
    assert not [text for text in asked if "{" in text or "please" in text.lower()]


def test_every_fact_is_asked_equally_often():
    task = TableFacts("train", path=SPANISH / "paises.csv")
    assert len(task) == 9 * len(task.facts)
    last = [task[i]["messages"][-1]["content"] for i in range(len(task.facts))]
    assert last.count("Lima.") == 1 and last.count("Perú.") == 1


@pytest.mark.parametrize("file", ["paises", "identidad", "no_se"])
def test_no_spanish_phrase_that_is_held_out_is_in_a_training_question(file):
    path, rng, asked = SPANISH / f"{file}.jsonl", random.Random(0), set()
    wordings = wordings_beside(path)
    columns = dict.fromkeys(("país", "capital", "continente", "moneda"), "Qzxuv")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        slots = columns | {k: texts[0] for k, texts in row.get("slots", {}).items()}
        for phrase in row["prompts"]:
            for _ in range(25):
                made = compose(phrase, rng, ("opener", "tail"), wordings, **slots)
                asked.add(f" {plain(made)} ")
    for row in rows:
        slots = columns | {k: texts[0] for k, texts in row.get("slots", {}).items()}
        for phrase in row["held_out"]:
            core = plain(phrase.removeprefix("... ").format(**slots))
            assert not any(f" {core} " in text for text in asked), phrase


def test_a_mixture_of_own_files():
    parts = [
        f"facts@'{SPANISH / 'paises.csv'}':0.1",
        f"identity@'{SPANISH / 'identidad.jsonl'}':0.1",
    ]
    made = mixture(",".join(parts), "train", seed=1)
    assert dict(made.report()).keys() == {"facts", "identity"}


# ---------------------------------------------------------------- wordings of another language


def test_forms_follow_the_languages_own_words():
    spanish = wordings_beside(SPANISH / "paises.jsonl")
    for phrase, expected in {
        "... cuál es la capital de {x}": "clause",
        "... la capital de {x}": "noun",
        "Dime la capital de {x}.": "request",
        "Eres muy listo.": "remark",
        "{x}: capital": "fragment",
        "{x}的首都是哪里？": "question",
    }.items():
        assert form(phrase, spanish) == expected, phrase


def test_english_stays_where_no_other_wordings_are(tmp_path, capsys):
    path = tmp_path / "me.jsonl"
    row = {"prompts": ["Who are you?"], "answers": ["I am Ada."], "expect": ["Ada"]}
    path.write_text(json.dumps(row))
    assert Identity("train", 5, path).wordings is read_wordings()
    assert "English openers" in capsys.readouterr().out
    (tmp_path / "wordings.jsonl").write_text('{"kind": "opener", "prompts": ["Salut, "]}\n')
    assert Identity("train", 5, path).wordings["opener"] == ["Salut, "]
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"kind": "greeting", "prompts": ["Salut"]}, "expected one of opener, clause"),
        ({"kind": "opener", "prompts": "Salut"}, "expected a list of texts"),
        ({"kind": "noun", "prompts": ["Dis-moi"]}, "expected ... in each noun"),
    ],
)
def test_wordings_of_another_form(tmp_path, row, why):
    path = tmp_path / "wordings.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=why):
        read_wordings(path)


def test_a_noun_phrase_without_leads_is_an_error(tmp_path):
    path = tmp_path / "wordings.jsonl"
    path.write_text('{"kind": "opener", "prompts": ["Salut, "]}\n')
    with pytest.raises(DataError, match="has no noun"):
        compose("... la capitale", random.Random(0), (), read_wordings(path))


# ---------------------------------------------------------------- tok_eval --text


def test_own_text_is_measured_in_two_parts(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps({"body": f"text {i:02d}"}) + "\n" for i in range(40)))
    texts = own_texts(TokEvalConfig(text=path, column="body"))
    assert {name: len(text) for name, text in texts.items()} == {
        "my.jsonl": 38 * 8,
        "my.jsonl, held out": 2 * 8,
    }
    with pytest.raises(DataError, match="--column"):
        own_texts(TokEvalConfig(text=path))


def test_a_vocabulary_of_the_hubs_cache_is_used(tmp_path, monkeypatch):
    """A vocabulary of the 256 bytes alone, in the place of GPT-2's: a token a byte."""
    from nanochat.tokenizer import Tokenizer

    Tokenizer.train(["x"], 320).save(tmp_path)
    place = str(tmp_path / "tokenizer.json")
    monkeypatch.setattr("scripts.tok_eval.try_to_load_from_cache", lambda *_: place)
    assert counts_of("GPT-2", ["abc", "é"], 1.0) == [3, 2]


def test_what_is_not_on_the_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    why = counts_of("GPT-4", ["abc"], 0.01)
    assert str(tmp_path) in why and "Xenova/gpt-4" in why and "llama_index" in why
