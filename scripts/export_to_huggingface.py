"""Export a checkpoint as a Hugging Face model, prove that it is the same model, and publish it.

    python scripts/export_to_huggingface.py --source sft --output-dir ./hf_model
    python scripts/export_to_huggingface.py --source sft --output-dir ./hf_model --push-to user/name

Nothing is published unless the folder, loaded by transformers in a fresh process, gives the same
ids, chats, logits and continuations as the native checkpoint.
"""

from dataclasses import dataclass
from pathlib import Path

from nanochat.checkpoint.index import checkpoint_of
from nanochat.common import ConfigError
from nanochat.configurator import cli
from nanochat.publishing.export import check_repo_id, export, push
from nanochat.publishing.parity import summary
from nanochat.publishing.space import write_space


@dataclass(frozen=True)
class Config:
    output_dir: Path
    """Folder to write: new or empty."""
    source: str = "sft"
    """Stage of the model (base, mid, sft, rl), or a checkpoint's folder."""
    model_tag: str | None = None
    """Run to take; default: the newest."""
    step: int | None = None
    """Its step; default: the newest."""
    dtype: str = "bfloat16"
    """What the weights are rounded to: bfloat16, float16 or float32."""
    overwrite: bool = False
    """Replace an earlier export in output_dir."""
    push_to: str | None = None
    """user/name on the hub to upload the proved folder to."""
    private: bool = False
    """Make a new repository private; refuse a public one."""
    space: bool = False
    """Also write <output_dir>-space: a chat page for the hub's Spaces."""


def main(config: Config) -> None:
    if config.push_to:
        check_repo_id(config.push_to)
    elif config.private:
        raise ConfigError("--private needs --push-to")
    output = config.output_dir.resolve()
    space, model_id = output.with_name(output.name + "-space"), config.push_to or str(output)
    if config.space:
        write_space(space, model_id, check_only=True)
    checkpoint = checkpoint_of(config.source, config.model_tag, config.step)
    report = export(checkpoint, output, config.dtype, overwrite=config.overwrite)
    print(f"{checkpoint} is the model in {output}, {config.dtype}:\n{summary(report)}")
    if config.push_to:
        print(f"pushed and verified: {push(output, config.push_to, private=config.private)}")
    if config.space:
        write_space(space, model_id)
        print(f"a Space: {space}; try it with `python {space / 'app.py'}`, publish it with")
        print(f"  hf upload user/name {space} --repo-type=space")
        if not config.push_to:
            print(f"once the model is on the hub and {space / 'model_id.txt'} names it there")


if __name__ == "__main__":
    cli(main, Config)
