"""Parity: is the model in an exported folder the one that was trained?

transformers loads the folder in a fresh process, and it is compared with the native checkpoint:
files, config, weights, tokenizer, rendered chats, logits and greedy continuations.

    python -m nanochat.publishing.parity FOLDER CHECKPOINT DTYPE
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nanochat.checkpoint.manifest import MANIFEST
from nanochat.checkpoint_manager import (
    RUN,
    hugging_face_records,
    hugging_face_texts,
    load_checkpoint,
)
from nanochat.common import CheckpointError
from nanochat.conversation import render, render_for_completion, stop_ids
from nanochat.gpt import GPT
from nanochat.publishing import parity_texts
from nanochat.publishing.export_files import CARD, INDEX, PARITY, read_record

TOLERANCE = 1e-4  # between logits, both computed in float32
LOGITS_AT_ONCE = 2**25  # float32 numbers: 128 MiB
NEW_TOKENS = 64
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class ParityError(CheckpointError):
    """The exported model does not compute what the checkpoint computes."""


@dataclass
class Check:
    """How many values were compared, how many differed, and the first three differences."""

    compared: int = 0
    different: int = 0
    examples: list[str] = field(default_factory=list)

    def same(self, what: str, found, expected) -> None:
        self.compared += 1
        if found != expected:
            self.different += 1
            if len(self.examples) < 3:
                self.examples.append(f"{what}: found {found!s:.300}, expected {expected!s:.300}")


def tally(checks: dict[str, Check]) -> dict:
    """The part of a report that says what was compared, and whether it passed."""
    counts = {n: {"compared": c.compared, "different": c.different} for n, c in checks.items()}
    differences = {name: check.examples for name, check in checks.items() if check.examples}
    return {"passed": not differences, "checks": counts, "differences": differences}


def summary(report: dict) -> str:
    """A line for each check of a report, followed by its first differences."""
    lines = []
    for name, check in report["checks"].items():
        differ = f", {check['different']} of them differ" if check["different"] else ""
        lines.append(f"  {name}: {check['compared']} compared{differ}")
        lines += [f"    {example}" for example in report["differences"].get(name, ())]
    if logits := report.get("logits"):
        lines.append(
            f"  largest difference of logits: {logits['max_abs_difference']:.2g} at "
            f"{logits['positions']:,} positions, {logits['tolerance']:.0e} allowed"
        )
    return "\n".join(lines)


# ---------------------------------------------------------------- in the exporting process


def prove(folder: Path, checkpoint: Path, dtype: str) -> dict:
    """Runs compare() in a fresh process, which writes parity.json into `folder`; returns it.

    dtype: what the weights were rounded to. ParityError if the models differ.
    """
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    (folder / PARITY).unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", "nanochat.publishing.parity"]
    command += [str(folder), str(checkpoint), dtype]
    ran = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", errors="replace"
    )
    report = read_record(folder / PARITY)
    if report is None:
        last = "\n".join((ran.stderr or ran.stdout).strip().splitlines()[-8:])
        reason = f"could not be loaded and compared (status {ran.returncode}):\n{last}"
        raise CheckpointError(f"{folder} {reason}")
    if not report["passed"]:
        raise ParityError(f"{folder} is not the model of {checkpoint}:\n{summary(report)}")
    return report


# ---------------------------------------------------------------- in the fresh process


@torch.no_grad()
def compare(folder: Path, checkpoint: Path, dtype: str) -> dict:
    """The report on an exported folder: loads both models, in float32, and compares them."""
    import tokenizers
    import transformers

    # Not on Apple's MPS: its float32 has not been measured against the tolerance.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    native, tokenizer = native_model(checkpoint, dtype, device)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    how = {"dtype": torch.float32, "trust_remote_code": False, "use_safetensors": True}
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs, loading = load(folder, output_loading_info=True, **how)
    theirs = theirs.to(device).eval()
    checks = {
        "files": check_files(folder, hugging_face_texts(native.config, tokenizer, dtype=dtype)),
        "config": check_config(theirs, native.config, tokenizer),
        "weights": check_weights(theirs, loading, native),
        **check_tokenizer(their_tokenizer, tokenizer),
        "chats": check_chats(their_tokenizer, tokenizer),
    }
    checks["logits"], logits = check_logits(theirs, native, tokenizer)
    checks["greedy"], greedy = check_greedy(theirs, native, tokenizer)
    modules = {"torch": torch, "transformers": transformers, "tokenizers": tokenizers}
    return {
        "dtype": dtype,
        "texts": len(parity_texts.texts()),
        **tally(checks),
        "logits": logits,
        "greedy": greedy,
        "versions": {name: module.__version__ for name, module in modules.items()},
    }


def native_model(checkpoint: Path, dtype: str, device: torch.device):
    """(model, tokenizer) of the checkpoint, its weights rounded to `dtype`, in float32."""
    weights, config, tokenizer, _ = load_checkpoint(checkpoint)
    for name in weights:  # in place: one copy in memory
        weights[name] = weights[name].to(DTYPES[dtype]).to(device, torch.float32)
    model = GPT.from_weights(config, weights)
    model.compute_dtype = torch.float32
    return model.eval(), tokenizer


def check_files(folder: Path, texts: dict[str, str]) -> Check:
    """The files themselves, for what the other checks could miss: a setting, a tokenizer's rule, a
    file that does not belong there."""
    check = Check()
    for name, text in texts.items():
        path = folder / name
        equal = path.is_file() and path.read_bytes() == text.encode()
        check.same(f"{name} equals the checkpoint's", equal, True)
    known = {*texts, RUN, INDEX, CARD, PARITY, MANIFEST}
    names = {path.name for path in folder.iterdir() if path.suffix != ".safetensors"}
    check.same("other files", sorted(names - known), [])
    return check


def check_config(theirs, config, tokenizer) -> Check:
    """Every field that the checkpoint wrote, as transformers understood it."""
    check = Check()
    expected, generation = hugging_face_records(config, tokenizer).values()
    expected["dtype"] = torch.float32  # as it was loaded
    for name in expected.keys() - {"rope_theta"}:  # in rope_parameters
        check.same(f"config {name}", getattr(theirs.config, name, "absent"), expected[name])
    for name, value in generation.items():
        found = getattr(theirs.generation_config, name)
        check.same(f"generation config {name}", found, value)
    return check


def check_weights(theirs, loading: dict, native: GPT) -> Check:
    """Every number as transformers loaded it; nothing missing, left over or of another shape."""
    check, loaded = Check(), theirs.state_dict()
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        check.same(kind.replace("_", " "), sorted(map(str, loading[kind])), [])
    for name, expected in native.state_dict().items():
        equal = name in loaded and torch.equal(loaded[name], expected)
        check.same(f"{name} equals the checkpoint's, rounded", equal, True)
    return check


def check_tokenizer(theirs, ours) -> dict[str, Check]:
    """Ids of every text with markup honoured and with markup as text, and the way back."""
    encode, ordinary, decode = Check(), Check(), Check()
    for text in parity_texts.texts():
        ids = ours.encode(text)
        encode.same(repr(text), theirs(text, add_special_tokens=False)["input_ids"], ids)
        encode.same(f"<|bos|> and {text!r}", theirs(text)["input_ids"], [ours.bos, *ids])
        decode.same(repr(text), theirs.decode(ids, skip_special_tokens=False), ours.decode(ids))
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ordinary.same(repr(text), plain, ours.encode_ordinary(text))
    return {"encode": encode, "encode_ordinary": ordinary, "decode": decode}


def check_chats(theirs, ours) -> Check:
    """Rendered chats, complete and to be completed; and that no content makes a special id."""
    check = Check()
    special = set(ours.special_ids.values())

    def rendered(chat: dict, **options) -> list[int]:
        return theirs.apply_chat_template(chat["messages"], **options)["input_ids"]

    for chat in parity_texts.chats():
        check.same(str(chat), rendered(chat), render(chat, ours)[0])
        if chat["messages"][-1]["role"] == "user":
            found = rendered(chat, add_generation_prompt=True)
            check.same(f"to complete: {chat}", found, render_for_completion(chat, ours))
    for chat in parity_texts.hostile_chats():
        found = [i for i in rendered(chat) if i in special]
        expected = [i for i in render(chat, ours)[0] if i in special]
        check.same(f"special ids of {chat}", found, expected)
    return check


def check_logits(theirs, native: GPT, tokenizer) -> tuple[Check, dict]:
    """All logits of all texts, which are joined into rows that fill the context."""
    check, largest, length = Check(), 0.0, native.config.sequence_len
    texts = parity_texts.texts()
    ids = [i for text in texts for i in [tokenizer.bos, *tokenizer.encode(text)]]
    ids += [tokenizer.bos] * (-len(ids) % length)
    rows = torch.tensor(ids, device=native.device).view(-1, length)  # (B, T)
    for batch in rows.split(max(1, LOGITS_AT_ONCE // (length * native.config.vocab_size))):
        difference = (theirs(batch, use_cache=False).logits.float() - native(batch)).abs()
        for row, worst in zip(batch.tolist(), difference.amax((1, 2)).tolist(), strict=True):
            largest = max(largest, worst) if worst == worst else worst  # a NaN stays
            text = tokenizer.decode(row)
            check.same(f"logits differ by {worst:.2g} in {text!r:.100}", worst <= TOLERANCE, True)
    figures = {"positions": len(ids), "max_abs_difference": largest, "tolerance": TOLERANCE}
    return check, figures


def check_greedy(theirs, native: GPT, tokenizer) -> tuple[Check, dict]:
    """Greedy continuations of eight prompts by transformers' generate(), with its cache.

    Each token must be the native model's likeliest after the same tokens, within twice the
    tolerance of logits. Stop ids are left out, so that all continuations have 64 tokens.
    """
    check, tokens = Check(), 0
    lines = parity_texts.written()["sentences"][:4]
    chats = [parity_texts.conversation([("user", text)]) for text in lines]
    prompts = [render_for_completion(chat, tokenizer) for chat in chats]
    prompts += [[tokenizer.bos, *tokenizer.encode_ordinary(text[:24])] for text in lines]
    length = native.config.sequence_len
    for prompt in prompts:
        prompt = prompt[: length // 2]
        count = min(NEW_TOKENS, length - len(prompt))
        ids = torch.tensor([prompt], device=native.device)
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        # subtle: without an attention mask, as people call it; if <|bos|>, the pad token, were not
        # a stop token, transformers would take the prompt's first token for padding and mask it.
        row = theirs.generate(ids, **options)
        chosen = row[0, len(prompt) :]  # (count,)
        logits = native(row[:, :-1])[0, len(prompt) - 1 :]  # (count, V)
        logits[:, list(stop_ids(tokenizer))] = -torch.inf
        behind = logits.amax(-1) - logits.gather(-1, chosen[:, None])[:, 0]
        tokens += len(chosen)
        worst = float(behind.max())
        texts = f"{tokenizer.decode(prompt)!r} by {tokenizer.decode(chosen.tolist())!r}"
        agrees = len(chosen) == count and worst <= 2 * TOLERANCE
        check.same(f"continuation of {texts}, a token {worst:.3g} behind", agrees, True)
    return check, {"prompts": len(prompts), "tokens": tokens}


if __name__ == "__main__":
    first, second, rounded_to = sys.argv[1:]
    result = compare(Path(first), Path(second), rounded_to)
    (Path(first) / PARITY).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
