"""Make a native checkpoint of a published model: a Hugging Face folder of transformers' nanochat
class, or karpathy/nanochat's model_*.pt with its meta_*.json and pickled tokenizer.

    python scripts/import_from_huggingface.py ./hf_model --tag rescued
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from nanochat.configurator import cli
from nanochat.publishing.doctor import id_problems
from nanochat.publishing.import_model import make_checkpoint, read_published
from nanochat.publishing.karpathy_checkpoint import is_karpathy_checkpoint


@dataclass(frozen=True)
class Config:
    folder: tyro.conf.Positional[Path]
    """The published model."""
    tag: str
    """Name of the run that the checkpoint becomes."""
    stage: str = "sft"
    """Its stage: base, mid, sft or rl."""
    tokenizer: Path | None = None
    """karpathy/nanochat's tokenizer.pkl, if it is not in the folder."""


def main(config: Config) -> None:
    model, problems = read_published(config.folder, config.tokenizer), []
    if not is_karpathy_checkpoint(config.folder):
        problems = id_problems(config.folder, model.config, model.tokenizer)
    path = make_checkpoint(model, config.tag, config.stage)
    print(f"{config.folder} is now the checkpoint {path}")
    for problem in problems:
        print(f"  not taken over: {problem}")
    print(f"chat:  python -m scripts.chat_cli --source={config.stage} --model-tag={config.tag}")


if __name__ == "__main__":
    cli(main, Config)
