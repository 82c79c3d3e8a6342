"""Make a native checkpoint of a published model: a Hugging Face folder of transformers' nanochat
class, or upstream nanochat's model_*.pt with its meta_*.json and pickled tokenizer.

    python scripts/import_from_huggingface.py ./hf_model --tag rescued
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from nanochat.configurator import cli
from nanochat.published import import_published
from nanochat.release import id_findings
from nanochat.tokenizer import Tokenizer


@dataclass(frozen=True)
class Config:
    folder: tyro.conf.Positional[Path]
    """The published model."""
    tag: str
    """Name of the run that the checkpoint becomes."""
    stage: str = "sft"
    """Its stage: base, mid, sft or rl."""
    tokenizer: Path | None = None
    """Upstream's tokenizer.pkl, where it does not lie in the folder."""


def main(config: Config) -> None:
    path = import_published(config.folder, config.tag, config.stage, config.tokenizer)
    print(f"{config.folder} is now the checkpoint {path}")
    for problem in id_findings(config.folder, Tokenizer.load(path).special_ids):
        print(f"  not taken over: {problem}")
    print(f"chat:  python -m scripts.chat_cli --source={config.stage} --model-tag={config.tag}")


if __name__ == "__main__":
    cli(main, Config)
