"""Write a checkpoint as a Hugging Face model, prove that it is the same model, and publish it.

    python scripts/export_to_huggingface.py --source sft --output-dir ./hf_model
    python scripts/export_to_huggingface.py --source sft --output-dir ./hf_model --push-to user/name

Nothing is published unless the written folder, loaded by transformers in a fresh process, gives the
same ids, chats, logits and continuations as the native checkpoint.
"""

from dataclasses import dataclass
from pathlib import Path

from nanochat.checkpoint.index import checkpoint_of
from nanochat.common import ConfigError
from nanochat.configurator import cli
from nanochat.publishing.export import check_place, export, push
from nanochat.publishing.parity import summary
from nanochat.publishing.space import check_space, write_space


@dataclass(frozen=True)
class Config:
    output_dir: Path
    """Folder to write; it must not exist, or be empty."""
    source: str = "sft"
    """Stage of the model (base, mid, sft, rl), or a checkpoint's folder."""
    model_tag: str | None = None
    """Run to take; default: the newest."""
    step: int | None = None
    """Its step; default: the newest."""
    dtype: str = "bfloat16"
    """What the weights are rounded to: bfloat16, float16 or float32."""
    shard_bytes: int = 5_000_000_000
    """Weights larger than this are written in several files."""
    overwrite: bool = False
    """Replace an earlier export in output_dir."""
    push_to: str | None = None
    """user/name on the hub to upload the folder to, once it is proved."""
    private: bool = False
    """A repository that is made for it is private; one that is public is refused."""
    space: bool = False
    """Also write <output_dir>-space: a chat page for the hub's Spaces."""


def main(config: Config) -> None:
    if config.push_to:
        check_place(config.push_to)
    elif config.private:
        raise ConfigError("--private says what --push-to makes; give both, or neither")
    output = config.output_dir.resolve()
    space = output.with_name(output.name + "-space")
    if config.space:
        check_space(space)
    checkpoint = checkpoint_of(config.source, config.model_tag, config.step)
    options = {"shard_bytes": config.shard_bytes, "overwrite": config.overwrite}
    report = export(checkpoint, config.output_dir, config.dtype, **options)
    print(f"{checkpoint} is the model in {config.output_dir}, {config.dtype}:\n{summary(report)}")
    if config.push_to:
        url = push(config.output_dir, config.push_to, private=config.private)
        print(f"pushed and compared: {url}")
    if config.space:
        write_space(space, config.push_to or str(output))
        print(f"a Space: {space}; try it with `python {space / 'app.py'}`, publish it with")
        print(f"  hf upload user/name {space} --repo-type=space")
        if not config.push_to:
            print(f"once the model is on the hub and {space / 'model_id.txt'} names it there")


if __name__ == "__main__":
    cli(main, Config)
