"""Facts of your own table: questions and answers made by templates, in any language.

`facts@./countries.csv` reads two files. The table has a header line, and a thing a line:

    country,capital,currency
    Peru,Lima,sol

Beside it, countries.jsonl has a line for each kind of question, like an identity file's, with the
table's columns as slots:

    {"kind": "capital", "prompts": ["What is the capital of {country}?", "{country}: capital"],
     "held_out": ["Which city is the capital of {country}?"], "follow_up": ["And {country}?"],
     "answers": ["{capital}."], "expect": ["{capital}"]}

"follow_up", which may be left out, asks the same about another thing in a later turn. A
wordings.jsonl in the folder gives openers and leads in your language (see tasks/wordings.py).
"""

import csv
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from nanochat.common import DataError, print0
from nanochat.data.rows import open_text
from nanochat.files import user_path
from tasks.facts import FOLLOW_UPS, ROUNDS
from tasks.source import check_columns, load_rows, text, texts
from tasks.task import GeneratedTask, exchange, plain, says
from tasks.wordings import SLOT, compose, draw_phrase, wordings_beside

ENDINGS = (".csv", ".tsv")
DELIMITERS = ",;\t|"


class TableFacts(GeneratedTask):
    """Every kind of question about every line of a table, each equally often: by default 9 times in
    the train split, once in the test split. Both ask the same facts, the test split half of them in
    phrases held out. Example: TableFacts("train", path="./countries.csv")[0]
    """

    name = "facts"

    def __init__(
        self, split: str = "train", size: int | None = None, path: str | Path = "facts.csv"
    ):
        super().__init__(split, size)
        path = user_path(path)
        table = read_table(path)
        self.rows, self.wordings = read_questions(path, table), wordings_beside(path)
        if split == "test" and not all(row["held_out"] for row in self.rows):
            raise DataError(
                f"{path.with_suffix('.jsonl')}: a kind without held_out prompts; the test split "
                f"asks half of its questions with them"
            )
        self.facts = list(facts(path, self.rows, table))
        self.things = {row["kind"]: [t for r, t in self.facts if r is row] for row in self.rows}
        random.Random(0).shuffle(self.facts)
        self.size = size or len(self.facts) * (ROUNDS if split == "train" else 1)

    def make(self, rng: random.Random, index: int) -> dict:
        row, thing = self.facts[index % len(self.facts)]
        weights = FOLLOW_UPS[self.split]
        number = rng.choices(range(len(weights)), weights)[0]
        others = rng.choices(self.things[row["kind"]], k=number)
        messages = []
        for other in (other for other in others if other != thing):
            messages += self.ask(row, other, "train", rng, later=bool(messages))["messages"]
        last = self.ask(row, thing, self.split, rng, later=bool(messages))
        return last | {"messages": messages + last["messages"]}

    def ask(self, row: dict, thing: dict, split: str, rng: random.Random, later: bool) -> dict:
        phrase, phrasing = draw_phrase(row, split, rng)
        layers: tuple[str, ...] = ("opener", "tail")
        if later and row["follow_up"]:
            phrase, layers, phrasing = rng.choice(row["follow_up"]), (), "trained"
        question = compose(phrase, rng, layers, self.wordings, **thing)
        answer = rng.choice(row["answers"]).format(**thing)
        expect = [phrase.format(**thing) for phrase in row["expect"]]
        return exchange(question, answer, expect=expect, fact_kind=row["kind"], phrasing=phrasing)

    def evaluate(self, conversation: dict, completion: str) -> bool:
        return any(says(completion, phrase) for phrase in conversation["expect"])


def read_table(path: Path) -> list[dict[str, str]]:
    """The lines of a .csv or .tsv as dicts; DataError names a line that cannot be used.

    Cells are separated by what the header line has most of: commas, semicolons, tabs or bars.
    """
    if not path.is_file() or not path.name.lower().endswith(ENDINGS):
        raise DataError(f"{path}: expected a file, *{' or *'.join(ENDINGS)}")
    try:
        with open_text(path) as file:
            lines = list(file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if "\ufffd" in line:
            raise DataError(f"{path}:{number}: not UTF-8; save it as such (Excel: CSV UTF-8)")
        if "\0" in line:
            raise DataError(f"{path}:{number}: a NUL character; this is no text")
    first = next((i for i, line in enumerate(lines) if line.strip(DELIMITERS + " \r\n")), None)
    if first is None:
        raise DataError(f"{path} is empty, expected a header line and a thing a line")
    delimiter = max(DELIMITERS, key=lines[first].count)
    if lines[first].lower().startswith("sep="):  # as Excel writes it
        delimiter, first = lines[first].strip()[4:] or ",", first + 1
    reader = csv.reader(lines[first:], delimiter=delimiter, strict=True)
    header: list[str] = []
    table = []
    try:
        for cells in reader:
            cells = [" ".join(cell.split()) for cell in cells]
            where = f"{path}:{first + reader.line_num}"
            while (
                cells and not cells[-1] and len(cells) > len(header)
            ):  # as spreadsheets leave them
                cells.pop()
            if not any(cells):
                continue
            if not header:
                header = cells
                bad = [name for name in header if not name or header.count(name) > 1]
                if bad or any(set(name) & set("{}[].!:") for name in header):
                    raise DataError(f"{where}: columns {header}, expected different plain names")
            elif len(cells) != len(header):
                raise DataError(
                    f"{where}: {len(cells)} cells, expected {len(header)}: {', '.join(header)}. "
                    f"Put a cell that has the separator {delimiter!r} in double quotes"
                )
            else:
                table.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}:{first + reader.line_num}: {error}") from error
    if not table:
        raise DataError(f"{path} has no line below its header, {', '.join(header) or 'none'}")
    return table


def read_questions(path: Path, table: list[dict[str, str]]) -> list[dict]:
    """The kinds of question from the .jsonl beside the table; DataError for one that does not fit
    it."""
    columns, beside = list(table[0]), path.with_suffix(".jsonl")
    if not beside.exists():
        raise DataError(
            f"{beside} is missing; it says how to ask about {path.name}. A line is for example "
            f'{{"kind": "{columns[-1]}", "prompts": ["What is the {columns[-1]} of '
            f'{{{columns[0]}}}?"], "held_out": ["Tell me the {columns[-1]} of {{{columns[0]}}}"], '
            f'"answers": ["{{{columns[-1]}}}."], "expect": ["{{{columns[-1]}}}"]}}'
        )

    def any_texts(value: object) -> list[str]:
        return [] if value == [] else texts(value)

    def check(row: dict, where: str) -> dict:
        wanted = {"prompts": texts, "held_out": any_texts, "follow_up": any_texts}
        wanted |= {"answers": texts, "expect": texts}
        row = {"kind": where, "held_out": [], "follow_up": []} | row
        row = check_columns(row, where, wanted | {"kind": text})
        asked = {plain(prompt) for prompt in row["prompts"]}
        for prompt in row["held_out"]:
            if plain(prompt) in asked:
                raise DataError(f"{where}: {prompt!r} is held out and also a prompt")
        for phrase in (phrase for name in wanted for phrase in row[name]):
            if unknown := {slot[1:-1] for slot in SLOT.findall(phrase)} - set(columns):
                raise DataError(
                    f"{where}: {phrase!r} has {sorted(unknown)}, expected columns of {path.name}: "
                    f"{', '.join(columns)}"
                )
            if SLOT.sub("", phrase).strip("{}") != SLOT.sub("", phrase):
                raise DataError(f"{where}: {phrase!r} has a brace too many")
        for name in ("prompts", "held_out", "follow_up"):
            if bare := [phrase for phrase in row[name] if not SLOT.search(phrase)]:
                raise DataError(f"{where}: {bare[0]!r} asks about no line, expected a {{column}}")
        return row

    rows = load_rows(beside, check)
    kinds = [row["kind"] for row in rows]
    if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
        raise DataError(f"{beside}: two lines of the kind {sorted(twice)[0]!r}, expected one")
    return rows


def facts(path: Path, rows: list[dict], table: list[dict]) -> Iterator[tuple[dict, dict]]:
    """(kind of question, line of the table) of every fact. Prints how many are left out: with an
    empty cell, or because the same question has several answers."""
    left_out, found = Counter(), 0
    for row in rows:
        asked = slots_of(row, "prompts", "held_out", "follow_up")
        answered = slots_of(row, "answers", "expect")
        by_subject: dict[tuple, list[dict]] = {}
        for thing in table:
            if all(thing[name] for name in asked + answered):
                by_subject.setdefault(tuple(thing[name] for name in asked), []).append(thing)
            else:
                left_out["with an empty cell"] += 1
        for things in by_subject.values():
            if len({tuple(thing[name] for name in answered) for thing in things}) > 1:
                left_out["of a question with several answers"] += len(things)
                continue
            left_out["that stand twice"] += len(things) - 1
            expect = [phrase.format(**things[0]) for phrase in row["expect"]]
            for answer in (answer.format(**things[0]) for answer in row["answers"]):
                if not any(says(answer, phrase) for phrase in expect):
                    raise DataError(f"{path}: answer {answer!r} has none of {expect}")
            found += 1
            yield row, things[0]
    if left_out.total():
        listed = "; ".join(f"{n:,} {what}" for what, n in left_out.items() if n)
        print0(f"{path}: {found:,} facts; left out: {listed}")
    if not found:
        raise DataError(f"{path} gives no fact: each has an empty cell or several answers")


def slots_of(row: dict, *names: str) -> list[str]:
    """The columns that these texts of a row have as slots."""
    return sorted({slot[1:-1] for name in names for t in row[name] for slot in SLOT.findall(t)})
