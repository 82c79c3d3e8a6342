"""Any causal language model in a Hugging Face folder, with the interfaces of GPT, Tokenizer and
Engine, so that the code that measures our models measures it too.

`transformers` computes everything; code that a folder brings is never run.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, takewhile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from nanochat.checkpoint_manager import load_model
from nanochat.common import CheckpointError, DataError, choose_dtype, print0, require_package
from nanochat.conversation import chat_template, content_parts
from nanochat.engine import Engine
from nanochat.files import base_dir
from nanochat.inference.calculator import evaluate
from nanochat.inference.request import Request
from nanochat.inference.sampling import SamplingParams, sample, uniform

# Names under which configurations keep the length of the context.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


class TransformersModel:
    """A model of `transformers` with GPT's config and device."""

    def __init__(self, model, sequence_len: int):
        self.model = model.eval().requires_grad_(False)
        self.device = model.device
        vocab_size = model.config.get_text_config().vocab_size
        self.config = SimpleNamespace(sequence_len=sequence_len, vocab_size=vocab_size)

    @torch.inference_mode()
    def logits_at(self, inputs: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """inputs (B, T) int64; places (N,) among its B T tokens -> (N, V) float32.

        subtle: the head is given these places alone, whatever the model does to its logits
        afterwards; for all tokens they would take most of the time and memory.
        """

        def choose(head, arguments):
            return (arguments[0].flatten(0, 1)[places],)  # (B, T, D) -> (N, D)

        if (head := self.model.get_output_embeddings()) is None:
            return self.model(inputs, use_cache=False).logits.flatten(0, 1)[places].float()
        hook = head.register_forward_pre_hook(choose)
        try:
            return self.model(inputs, use_cache=False).logits.float()
        finally:
            hook.remove()


class TransformersTokenizer:
    """A tokenizer of `transformers` with Tokenizer's methods."""

    def __init__(self, tokenizer, stop_ids: Iterable[int], vocab_size: int):
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.stop_ids = tuple(sorted(set(stop_ids)))
        first = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id)
        self.bos = next((i for i in first if i is not None), None)
        if self.bos is None:
            raise DataError(
                f"{tokenizer.name_or_path}: the tokenizer names no token that a text begins with; "
                f"set bos_token in tokenizer_config.json"
            )

    def encode(self, text: str | list[str], ordinary: bool = False) -> list:
        """Ids of what the programmer wrote: names of special tokens are honoured."""
        options = {"add_special_tokens": False, "split_special_tokens": ordinary, "verbose": False}
        return self.tokenizer(text, **options)["input_ids"]

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of what a user or a data set wrote: nothing in it becomes a special token."""
        return self.encode(text, ordinary=True)

    def encode_ordinary_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(flat ids, offsets), both int64."""
        encoded = self.encode(list(texts), ordinary=True) if texts else []  # on all threads
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return np.fromiter(chain.from_iterable(encoded), np.int64), offsets

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for, special tokens named."""
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return self.tokenizer.decode(list(ids), **options)

    def render_for_completion(self, conversation: dict) -> list[int]:
        """The ids to complete, by the folder's chat template (without one: the texts with blank
        lines between them, bos first); a last assistant message is left out."""
        messages = conversation["messages"]
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        template = self.tokenizer.chat_template
        if template != chat_template():  # only our own knows messages that are made of parts
            joined = ("".join(part for _, part in content_parts(m["content"])) for m in messages)
            messages = [m | {"content": text} for m, text in zip(messages, joined, strict=True)]
        if template is None:
            text = "".join(f"{message['content']}\n\n" for message in messages)
            return [self.bos, *self.encode_ordinary(text)]
        options = {"add_generation_prompt": True, "tokenize": False}
        return self.encode(self.tokenizer.apply_chat_template(messages, **options))


class TransformersEngine:
    """Generates with `transformers` and our sampling, as Engine does for GPT; it has no tools.

    Example: TransformersEngine(*load_transformers(folder, "cpu")).complete([[1, 2]], max_tokens=8)
    """

    def __init__(self, model: TransformersModel, tokenizer: TransformersTokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.fused = model  # what CORE reads of an Engine

    @torch.inference_mode()
    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        num_samples: int = 1,
        temperature: float = 1.0,
        seed: int = 42,
        max_batch: int = 64,
        on_end: Callable[[], object] = lambda: None,
    ) -> list[list[str]]:
        """The completions of every prompt as text, up to a stop id; options as in Engine.generate.
        `max_batch` rows run together until the longest of them has ended."""
        from transformers import GenerationConfig, LogitsProcessorList

        params = SamplingParams(temperature, seed=seed)
        config, device = self.model.config, self.model.device
        for i, prompt in enumerate(prompts):
            Request(prompt, max_tokens, params).check(config, f"prompt {i}")
        stops, bos = list(self.tokenizer.stop_ids), self.tokenizer.bos
        jobs = [(i, s) for i in range(len(prompts)) for s in range(num_samples)]
        jobs.sort(key=lambda job: len(prompts[job[0]]), reverse=True)
        completions = [[""] * num_samples for _ in prompts]
        for first in range(0, len(jobs), max_batch):
            batch = jobs[first : first + max_batch]
            rows = [torch.tensor(prompts[i]) for i, _ in batch]
            ids = pad_sequence(rows, True, bos, padding_side="left").to(device)
            mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left")
            T, samples = ids.shape[1], [s for _, s in batch]

            def draw(so_far: torch.Tensor, logits: torch.Tensor, T=T, samples=samples):
                n, position = len(samples), so_far.shape[1] - T
                noise = [uniform(seed, one, position) for one in samples]
                tokens = torch.tensor(sample(logits.float(), [params] * n, noise), device=device)
                return torch.full_like(logits, float("-inf")).scatter_(1, tokens[:, None], 0.0)

            how = GenerationConfig(
                max_new_tokens=min(max_tokens, config.sequence_len - T),
                eos_token_id=stops or None,
                pad_token_id=stops[0] if stops else bos,
                do_sample=False,  # `draw` leaves one token to choose
            )
            answers = self.model.model.generate(
                ids,
                attention_mask=mask.to(device),
                generation_config=how,
                logits_processor=LogitsProcessorList([draw]),
            )
            for (i, s), answer in zip(batch, answers[:, T:].tolist(), strict=True):
                chosen = list(takewhile(lambda token: token not in stops, answer))
                completions[i][s] = self.tokenizer.decode(chosen)
                on_end()
        return completions

    @torch.inference_mode()
    def next_logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """(B, V) float32: the logits after the last token of each prompt."""
        rows = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
        last = [i * rows.shape[1] + len(prompt) - 1 for i, prompt in enumerate(prompts)]
        return self.model.logits_at(rows.to(self.model.device), torch.tensor(last))


def open_engine(
    config, device: torch.device, tool: Callable[[str], str] = evaluate, weights: str | None = None
) -> tuple[Engine | TransformersEngine, Path, dict, dict | None]:
    """(engine, folder for its figures, {"stage", "step"}, its run's config) of the Hugging Face
    folder config.hf_path, which has no run, or else of the checkpoint that load_model finds by
    config.source, model_tag and step, whose engine keeps `weights` as Engine says."""
    if config.hf_path is not None:
        engine = TransformersEngine(*load_transformers(config.hf_path, device))
        folder = base_dir() / "hf_evaluations" / Path(config.hf_path).resolve().name
        print0(f"{config.hf_path}: figures go to {folder}")
        return engine, folder, {"stage": "hf", "step": 0}, None
    run = (config.source, device, "eval", config.model_tag, config.step)
    model, tokenizer, meta = load_model(*run)
    print0(f"{meta['stage']} {meta['tag']}, step {meta['step']:,}")
    place = {"stage": meta["stage"], "step": meta["step"]}
    engine = Engine(model, tokenizer, tool, weights=weights)
    return engine, Path(meta["path"]).parent, place, meta["config"]


def load_transformers(
    path: Path | str, device: torch.device | str
) -> tuple[TransformersModel, TransformersTokenizer]:
    """(model, tokenizer) of a folder that AutoModelForCausalLM reads, in compute dtype;
    CheckpointError if it is missing or incomplete."""
    require_package("transformers")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    if not Path(path).is_dir():
        raise CheckpointError(
            f"{path} is no folder; expected a Hugging Face model's. Download one: hf download "
            f"openai-community/gpt2 --local-dir gpt2"
        )
    device = torch.device(device)
    options = {"trust_remote_code": False, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, **options)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=choose_dtype(device)[0], use_safetensors=True, **options
        ).to(device)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(f"{path}: transformers cannot load it: {error}") from error
    if tokenizer.chat_template is None:
        print0(f"{path} has no chat template: a conversation is its texts with blank lines between")
    wrapped = TransformersModel(model, context_of(model, tokenizer))
    ends = model.generation_config.eos_token_id
    # subtle: generate() would mix the folder's own wishes (sampling, penalties) into ours
    model.generation_config = GenerationConfig()
    stops = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    return wrapped, TransformersTokenizer(tokenizer, stops, wrapped.config.vocab_size)


def context_of(model, tokenizer) -> int:
    """Tokens of the model's context, by its configuration or its tokenizer's."""
    config = model.config.get_text_config()
    lengths = [getattr(config, name, None) for name in CONTEXT_NAMES]
    for length in [*lengths, tokenizer.model_max_length]:
        if isinstance(length, int) and 0 < length <= 1 << 20:  # tokenizers say 10^30 for "unknown"
            return length
    path = tokenizer.name_or_path
    raise CheckpointError(f"{path}: config.json names no context length ({CONTEXT_NAMES})")
