"""Unknown: what the assistant cannot do or does not know, and the short honest answer.

Stories, programs, translations, news, advice, opinions, people, history, science: a model that has
learned a few facts would else answer with one of them.
"""

from pathlib import Path

from tasks.identity import Identity


class Unknown(Identity):
    """The rows of unknown.jsonl, as Identity's: phrases, and topics that fill their slots."""

    name = "unknown"
    file = Path(__file__).with_name("unknown.jsonl")
    layers = ("opener", "tail")
