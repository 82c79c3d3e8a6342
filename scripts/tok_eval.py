"""Compares the tokenizer with GPT-2's and GPT-4's: characters per token by kind of text.

    python -m scripts.tok_eval

The others' vocabularies are downloaded by tiktoken (pip install tiktoken); without it, or without a
network, this says so, and shows ours. The counts are kept beside the tokenizer, for the report.
"""

import inspect
import json
import multiprocessing
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nanochat.common import print0
from nanochat.configurator import cli
from nanochat.files import base_dir, write_atomic
from nanochat.report.evaluations import TOKENIZER_RECORD, tokenizer_table
from nanochat.tokenizer import Tokenizer

OTHERS = {"GPT-2": "gpt2", "GPT-4": "cl100k_base"}


@dataclass(frozen=True)
class Config:
    tokenizer: Path | None = None
    """Folder with the tokenizer; unset: tokenizer/ under the base folder."""
    compare: bool = True
    """Whether to compare with GPT-2's and GPT-4's tokenizers."""
    timeout: float = 20.0
    """Seconds that tiktoken may take to get each of their vocabularies."""


def samples() -> dict[str, str]:
    """A text of each kind, written for this file; the code is Python's own json module."""
    english = """
        The old ferry left the harbour a little after six, when the fog had begun to lift and the
        first gulls were circling above the fish market. My grandmother stood at the rail with her
        coat buttoned up to her chin, and she told me, as she did every summer, how the island had
        looked before the bridge was built. I didn't listen very closely. I was watching the water
        fold behind us, green and then white, and thinking about breakfast."""
    news = """
        RIVERTON, March 14 - The city council voted 7-2 on Tuesday to spend $48.5 million on the
        flood wall along the eastern bank, ending a dispute that began after the storms of 2019.
        "It won't please everyone," said Mayor Elena Ruiz, "but we can't wait for another winter."
        Construction is expected to start in June; about 1,200 households will have to move for as
        long as 18 months. Opponents said they would appeal the decision before the end of April."""
    mathematics = r"""
        Let $f(x) = x^3 - 3x + 1$. Since $f'(x) = 3x^2 - 3 = 3(x-1)(x+1)$, the critical points are
        $x = \pm 1$, with $f(-1) = 3$ and $f(1) = -1$. By the intermediate value theorem there are
        three real roots. Substituting $x = 2\cos\theta$ gives $2\cos 3\theta + 1 = 0$, hence
        $$\theta = \frac{2\pi}{9} + \frac{2\pi k}{3}, \qquad k = 0, 1, 2.$$
        Check: 1.532089^3 - 3 * 1.532089 + 1 = 3.596 - 4.596 + 1 = 0.000 to three decimals."""
    science = """
        Chlorophyll absorbs light most strongly near 430 nm and 662 nm. In the thylakoid membrane,
        photosystem II transfers electrons to plastoquinone, and the oxidation of two H2O molecules
        releases O2 and four protons. The resulting electrochemical gradient drives ATP synthase;
        NADPH is produced by ferredoxin-NADP+ reductase. Measured quantum yields are about 0.1 mol
        of CO2 per mole of photons, some 20% below the theoretical maximum (Fig. 3, Table 2)."""
    languages = """
        Le petit marché ouvre à sept heures, et l'odeur du pain remplit déjà toute la rue.
        Die Straßenbahn fährt heute später, weil über Nacht sehr viel Schnee gefallen ist.
        Mañana iremos a la montaña con los niños, aunque el camino sea largo y difícil.
        Завтра утром мы поедем к реке, если не будет дождя и ветер станет тише.
        今日は天気がいいので、公園まで歩いて行きましょう。 明天我们一起去图书馆看书吧。
        오늘은 날씨가 좋아서 공원에 갔습니다. الطقس جميل اليوم. आज मौसम बहुत अच्छा है।"""
    code = inspect.getsource(json) + inspect.getsource(json.decoder)
    named = {
        "English": english,
        "news": news,
        "code": code,
        "mathematics": mathematics,
        "science": science,
        "other languages": languages,
    }
    return {kind: textwrap.dedent(text).strip() for kind, text in named.items()}


def count_tokens(encoding: str, texts: list[str], answer) -> None:
    """Puts the token counts of `texts`, or what went wrong, into the queue `answer`."""
    try:
        import tiktoken

        encode = tiktoken.get_encoding(encoding).encode_ordinary
        answer.put([len(encode(text)) for text in texts])
    except Exception as error:  # whatever the download raised is told, not hidden
        answer.put(type(error).__name__)


def counts_of(encoding: str, texts: list[str], timeout: float) -> list[int] | str:
    """Token counts by one of tiktoken's own encodings, or why there are none.

    In a process of its own: tiktoken's download has no time limit that could be set.
    """
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=count_tokens, args=(encoding, texts, answer), daemon=True)
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        return f"not downloaded within {timeout:g} s"
    return "its process ended early" if answer.empty() else answer.get()


def main(config: Config) -> None:
    folder = config.tokenizer or base_dir() / "tokenizer"
    tokenizer = Tokenizer.load(folder)
    texts = samples()
    length: Callable[[str], int] = lambda text: len(tokenizer.encode_ordinary(text))  # noqa: E731
    columns = {"ours": [length(text) for text in texts.values()]}
    for name, encoding in OTHERS.items() if config.compare else ():
        found = counts_of(encoding, list(texts.values()), config.timeout)
        if isinstance(found, str):
            print0(f"{name} ({encoding}) is not compared: tiktoken does not give it ({found})")
        else:
            columns[name] = found
    record = {
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "texts": [
            {
                "kind": kind,
                "characters": len(text),
                "tokens": {name: counts[i] for name, counts in columns.items()},
            }
            for i, (kind, text) in enumerate(texts.items())
        ],
    }
    write_atomic(folder / TOKENIZER_RECORD, json.dumps(record, indent=1) + "\n")
    shown = tokenizer_table(record)
    table = Table(*shown.headers, title=f"{shown.caption} (more is better)")
    for row in shown.rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    cli(main, Config)
