"""The commands of train_on_colab.ipynb: nanochat's own scripts, with curves that grow under the
cell and a second copy on Google Drive.

    run = open_run(depth=0, minutes=120, data="auto", model_tag="colab", drive="")
    run.script("base_train", depth=run.settings.depth)  # python -m scripts.base_train --depth=8
"""

import ctypes
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from nanochat.chat.terminal import Chat
from nanochat.checkpoint import manifest
from nanochat.checkpoint.index import (
    SCRIPTS,
    available_checkpoints,
    checkpoint_dir,
    checkpoints_in,
    run_dir,
)
from nanochat.checkpoint_manager import load_model
from nanochat.common import CheckpointError, ConfigError, compute_init
from nanochat.engine import Engine
from nanochat.files import base_dir, read_json, write_atomic
from nanochat.inference.sampling import SamplingParams
from nanochat.publishing.mirror import copy_to_folder
from nanochat.report.plots import running_mean
from nanochat.report.report import write_report
from nanochat.tokenizer import Tokenizer
from nanochat.training.log import read_metrics
from notebooks.settings import Settings, choose, this_machine

STAGES = {script: stage for stage, script in SCRIPTS.items()}
REMEMBERED = (*STAGES, "tok_train", "tok_eval", "base_eval", "chat_eval")  # done once for a run
# Small files of a run, under the base folder and at the same places in the mirror.
RECORDS = ("tokenizer/*", "report/{tag}/*", "notebook-{tag}.json", "*_checkpoints/{tag}/*.json*")
RECORDS += ("*_checkpoints/{tag}/answers/*",)
SECONDS_BETWEEN_CURVES = 15
KEPT_IN_MIRROR = 2  # checkpoints of a stage; Drive gives 15 GB


def google_colab():
    """Colab's own module, None elsewhere."""
    try:
        import google.colab.drive
        import google.colab.files
        import google.colab.output
    except ImportError:
        return None
    return google.colab


def from_environment(form: dict) -> dict:
    """The form's values; an environment variable of the same name wins, as in speedrun.sh."""
    for name, value in form.items():
        given = os.environ.get(name.upper())
        if given is not None:
            form = form | {name: type(value)(given)}
            print(f"{name} = {form[name]}, from the environment variable {name.upper()}")
    return form


def open_run(**form) -> "Run":
    """The run that the form describes: mounts Drive, takes back what an earlier session saved there
    and prints the settings. form: depth, minutes, data, model_tag, drive ("" for none)."""
    form = from_environment(form)
    tag, drive = form.pop("model_tag"), form.pop("drive")
    if drive and google_colab():
        google_colab().drive.mount(drive.partition("/MyDrive")[0])
        print(f"every checkpoint is copied to {drive}, and verified")
    else:
        reason = "this is not Colab, so there is no Drive" if drive else "Drive is switched off"
        print(f"{reason}: checkpoints are in {base_dir()} alone")
        drive = ""
    if drive:
        restore(tag, Path(drive))
    path, machine = base_dir() / f"notebook-{tag}.json", this_machine()
    print(machine)
    if path.exists():
        saved = read_json(path, "Delete it, and run all cells again")
        run = Run(tag, Settings(**saved["settings"]), drive, saved["done"])
        print(f"the run {tag} has begun before and goes on with its settings (another MODEL_TAG")
        print(f"starts a new one). Done: {', '.join(c.split()[2] for c in run.done) or 'nothing'}")
    else:
        run = Run(tag, choose(machine, **form), drive)
    print(run.settings)
    return run


# ---------------------------------------------------------------- the copy on Drive


def restore(tag: str, mirror: Path) -> None:
    """Takes from the mirror what the base folder lacks: each stage's newest checkpoint, records."""
    copy_records(tag, mirror, base_dir())
    for stage in SCRIPTS:
        here = available_checkpoints(stage, tag)
        for there in checkpoints_in([mirror / checkpoint_dir(stage).name / tag]):
            if here and here[0].step >= there.step:
                break
            try:
                copy_to_folder(there.path, base_dir())
            except CheckpointError as error:
                print(f"skipped: {error}")
            else:
                print(f"restored from {mirror}: {stage} {tag}, step {there.step:,}")
                break


def copy_records(tag: str, source: Path, target: Path) -> None:
    """Copies the run's small files that are newer in `source`."""
    for pattern in RECORDS:
        for path in source.glob(pattern.format(tag=tag)):
            place = target / path.relative_to(source)
            if not place.exists() or place.stat().st_mtime < path.stat().st_mtime:
                write_atomic(place, path.read_bytes())


def back_up(tag: str, mirror: Path) -> None:
    """Copies the records, and keeps the newest checkpoints of each stage in the mirror alone."""
    copy_records(tag, base_dir(), mirror)
    for stage in SCRIPTS:
        for old in checkpoints_in([mirror / checkpoint_dir(stage).name / tag])[KEPT_IN_MIRROR:]:
            manifest.remove(old.path)


# ---------------------------------------------------------------- commands


def as_flags(flags: dict) -> list[str]:
    """Example: as_flags({"depth": 8, "resume": True}) == ["--depth=8", "--resume"]"""
    named = {name.replace("_", "-"): value for name, value in flags.items() if value is not None}
    return [
        f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name}={value}"
        for name, value in named.items()
    ]


def end_with_parent() -> None:
    """In a new process: a notebook whose kernel is gone leaves no training behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def start(command: list[str], **options) -> subprocess.Popen:
    """Starts `python ...` in a group of its own, so that the notebook's stop button reaches it
    once: through us."""
    arguments = [sys.executable, *command[1:]]
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(arguments, process_group=0, preexec_fn=end_with_parent, **options)


@dataclass
class Run:
    """One run of the notebook. mirror: a folder on Drive, or ""; done: commands that ended well."""

    tag: str
    settings: Settings
    mirror: str = ""
    done: list[str] = field(default_factory=list)

    def script(self, name: str, **flags) -> None:
        """Runs `python -m scripts.NAME` with these flags and those that every run has, and shows
        what it prints; of training also curves. What was finished before is not done again."""
        stage = STAGES.get(name)
        if not name.startswith("tok_"):
            flags["model_tag"] = self.tag
        if stage:
            flags |= {"mirror": self.mirror or None, "resume": True}
        command = ["python", "-m", f"scripts.{name}", *as_flags(flags)]
        line = shlex.join(command)
        lost = stage and not available_checkpoints(stage, self.tag)
        if name in REMEMBERED and line in self.done and not lost:
            print(f"done before: {line}")
        else:
            print(line)
            self.follow(start(command), stage)
            if name in REMEMBERED:
                self.done.append(line)
            self.keep()
        if stage:
            display(self.curves(stage))

    def follow(self, process: subprocess.Popen, stage: str | None) -> None:
        """Shows what a script prints until it ends. A progress line becomes the title of the
        curves, which are drawn anew in place. ConfigError for a script that fails."""
        shown, drawn = None, 0.0
        try:
            for line in process.stdout:
                if not (stage and re.match(rf"{stage} +[\d,]+/", line)):
                    print(line, end="", flush=True)
                    if self.mirror and line.startswith("mirror: "):
                        back_up(self.tag, Path(self.mirror))
                elif time.monotonic() - drawn > SECONDS_BETWEEN_CURVES:
                    drawn, picture = time.monotonic(), self.curves(stage, line.strip())
                    if shown:
                        shown.update(picture)
                    else:
                        shown = display(picture, display_id=True)
        except BaseException:  # most of all the stop button
            process.send_signal(signal.SIGTERM)
            print(process.stdout.read(), "\nstopped: Run all goes on from the last checkpoint")
            raise
        process.wait()
        if shown:
            shown.update(Markdown(""))  # the last ones follow
        if process.returncode:
            raise ConfigError(f"the command above ended with status {process.returncode}")

    def keep(self) -> None:
        """Writes down what is done, here and in the mirror."""
        record = {"settings": asdict(self.settings), "done": self.done}
        write_atomic(base_dir() / f"notebook-{self.tag}.json", json.dumps(record, indent=1) + "\n")
        if self.mirror:
            back_up(self.tag, Path(self.mirror))

    def curves(self, stage: str, title: str = "") -> Image:
        """Loss and bits per byte of a stage so far, from its metrics.jsonl."""
        records = read_metrics(run_dir(stage, self.tag))
        losses = [(r["step"], r["loss"]) for r in records if "loss" in r]
        bits = [(r["step"], r["val_bpb"]) for r in records if "val_bpb" in r]
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        figure.suptitle(title or f"{stage}: {len(losses):,} steps", fontsize=8, family="monospace")
        left, right = figure.subplots(1, 2)
        left.set(xlabel="step", ylabel="loss")
        right.set(xlabel="step", ylabel="validation, bits per byte")
        if losses:
            steps, values = zip(*losses, strict=True)
            left.plot(steps, values, alpha=0.3, linewidth=0.8)
            if len(values) > 2:
                left.plot(steps, running_mean(values), color="C0")
        if bits:
            right.plot(*zip(*bits, strict=True), marker="o", color="C1")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=80)
        return Image(png.getvalue())

    # ------------------------------------------------------------ looking at what came out

    def show_tokens(self, text: str) -> None:
        """Text cut into the tokenizer's tokens."""
        tokenizer = Tokenizer.load(base_dir() / "tokenizer")
        ids = tokenizer.encode_ordinary(text)
        print(" | ".join(tokenizer.decode_bytes([i]).decode("utf-8", "replace") for i in ids))
        print(f"{len(text)} characters, {len(ids)} tokens: {ids}")

    def show_report(self) -> None:
        """The report's tables, and the curves of every stage."""
        folder = write_report(self.tag)
        display(Markdown((folder / "report.md").read_text(encoding="utf-8")))
        for stage in SCRIPTS:
            if available_checkpoints(stage, self.tag):
                display(self.curves(stage))
        self.keep()

    @cached_property
    def chat(self) -> Chat:
        """A conversation with the fine-tuned model, in this notebook's own process."""
        *_, device = compute_init()
        model, tokenizer, _ = load_model("sft", device, "eval", self.tag)
        return Chat(Engine(model, tokenizer), SamplingParams(temperature=0.0), max_tokens=256)

    def open_page(self) -> None:
        """Starts the chat page; Colab's own proxy shows it to you alone."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = ["python", "-m", "scripts.chat_web", f"--port={port}", f"--model-tag={self.tag}"]
        if colab := google_colab():
            address = colab.output.eval_js(f"google.colab.kernel.proxyPort({port})")
            command += ["--allow-origin", address.rstrip("/")]
        server = start(command)
        for line in server.stdout:
            print(line, end="")
            if line.startswith("chat at "):
                break
        else:
            raise ConfigError("the chat page did not start; the lines above say why")
        # subtle: a pipe that nobody reads fills up, and the server would wait for ever
        subprocess.Popen(["cat"], stdin=server.stdout, stdout=subprocess.DEVNULL)
        if colab:
            print(f"the page through Colab's proxy: {address}")
            colab.output.serve_kernel_port_as_window(port, anchor_text="open the chat page")

    def folder_for(self, name: str) -> Path:
        """Where an export goes."""
        return base_dir() / "exports" / self.tag / name

    def download(self, *folders: Path) -> None:
        """Packs each folder, copies it to Drive, and downloads it where this is Colab."""
        for folder in folders:
            packed = Path(shutil.make_archive(str(folder), "zip", folder))
            print(f"{packed}: {packed.stat().st_size / 1e6:.1f} MB")
            if self.mirror:
                place = Path(self.mirror) / "exports" / self.tag / packed.name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(packed, place)
                print(f"copied to {place}")
            if colab := google_colab():
                colab.files.download(str(packed))
