"""Any causal language model in a Hugging Face folder, with the faces of our GPT, Tokenizer and
Engine, so that baselines and exports are measured by the code that measures our own models.

`transformers` computes everything; no code that a folder brings is run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nanochat.common import (
    CheckpointError,
    ConfigError,
    DataError,
    choose_dtype,
    print0,
    require_package,
)
from nanochat.conversation import CHAT_TEMPLATE
from nanochat.gpt import soft_cap
from nanochat.inference.sampling import SamplingParams, sample, uniform

# Names under which configurations keep the length of the context.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
CLOSE_ENOUGH = 0.02  # of the largest logit; compute dtype rounds


@dataclass(frozen=True)
class TransformersConfig:
    """What callers ask of a model's configuration."""

    sequence_len: int
    vocab_size: int


class TransformersModel:
    """A model of `transformers` with the face of GPT: features, logits, config, device.

    Features are what the head is applied to, where head (and soft-cap) of them are the model's own
    logits; that is tried once. Else they are the logits themselves, which costs memory.
    """

    def __init__(self, model, sequence_len: int):
        self.model = model.eval().requires_grad_(False)
        self.device, self.compute_dtype = model.device, model.dtype
        self.head = model.get_output_embeddings()
        self.softcap = getattr(model.config, "final_logit_softcapping", None)
        self.config = TransformersConfig(sequence_len, model.config.get_text_config().vocab_size)
        self.features_are_logits = False  # as long as the head is tried
        self.features_are_logits = not self._head_is_all()
        if self.features_are_logits:
            print0(
                "this model does more to its logits than a head and a soft-cap: they are made for "
                "every token, which is slower and takes more memory (a smaller --device-batch-size "
                "takes less)"
            )

    @torch.inference_mode()
    def _head_is_all(self) -> bool:
        if self.head is None or self.model.base_model is self.model:
            return False
        ids = torch.arange(min(8, self.config.vocab_size), device=self.device)[None]
        theirs = self.model(ids, use_cache=False).logits.float()
        ours = self.logits(self._hidden(ids))
        close = CLOSE_ENOUGH * theirs.abs().max()
        return ours.shape == theirs.shape and bool(((ours - theirs).abs() <= close).all())

    def _hidden(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.model.base_model(inputs, use_cache=False)[0]

    @torch.inference_mode()
    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs (B, T) int64 -> (B, T, D), or (B, T, V) where features_are_logits."""
        if self.features_are_logits:
            return self.model(inputs, use_cache=False).logits
        return self._hidden(inputs)

    @torch.inference_mode()
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., V) float32."""
        if self.features_are_logits:
            return features.float()
        return soft_cap(self.head(features).float(), self.softcap)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logits(self.features(inputs))


class TransformersTokenizer:
    """A tokenizer of `transformers` with the face of Tokenizer, and the ids that end an answer.

    Example: TransformersTokenizer(AutoTokenizer.from_pretrained(folder), {50256}, 50257).bos
    """

    def __init__(self, tokenizer, stop_ids: Iterable[int], vocab_size: int):
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.stop_ids = tuple(sorted(set(stop_ids)))
        first = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id)
        first = [i for i in first if i is not None]
        if not first:
            raise DataError(
                f"the tokenizer of {tokenizer.name_or_path} names no token that a text begins with "
                f"(bos_token, eos_token); expected one in tokenizer_config.json"
            )
        self.bos = first[0]

    def _encode(self, texts: list[str], ordinary: bool) -> list[list[int]]:
        options = {"add_special_tokens": False, "split_special_tokens": ordinary, "verbose": False}
        return self.tokenizer(texts, **options)["input_ids"] if texts else []

    def encode(self, text: str) -> list[int]:
        """Ids of what the programmer wrote: names of special tokens are honoured."""
        return self._encode([text], ordinary=False)[0]

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of what a user or a data set wrote: nothing in it becomes a special token."""
        return self._encode([text], ordinary=True)[0]

    def encode_ordinary_batch(
        self, texts: Iterable[str], num_threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(flat ids, offsets), int64; the package itself chooses its number of threads."""
        encoded = self._encode(list(texts), ordinary=True)
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        flat = (token for ids in encoded for token in ids)
        return np.fromiter(flat, dtype=np.int64, count=offsets[-1]), offsets

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for, special tokens named."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def render_for_completion(self, conversation: dict) -> list[int]:
        """The ids to complete, by the folder's chat template; a last assistant message is left out.

        Without a template, the messages' texts with blank lines between them, <|bos|> first.
        """
        messages = conversation["messages"]
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        template = self.tokenizer.chat_template
        if template != CHAT_TEMPLATE:  # only our own knows messages that are made of parts
            messages = [{"role": m["role"], "content": text_of(m["content"])} for m in messages]
        if template is None:
            text = "\n\n".join(message["content"] for message in messages) + "\n\n"
            return [self.bos, *self.encode_ordinary(text)]
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return self.encode(text)


def text_of(content: str | list[dict]) -> str:
    """The text of a message that is a string or a list of parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class TransformersEngine:
    """Generates by `transformers`, with our sampling: what Engine does for GPT, without tools.

    Example: TransformersEngine(*load_transformers(folder, "cpu")).complete([[1, 2]], max_tokens=8)
    """

    def __init__(self, model: TransformersModel, tokenizer: TransformersTokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.fast = model  # what CORE reads of an Engine

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 42,
        max_batch: int = 64,
        on_end: Callable[[], object] = lambda: None,
    ) -> list[list[str]]:
        """The completions of every prompt as text, each up to a stop id. Noise and errors are those
        of Engine.generate; `max_batch` rows run together until the longest of them has ended."""
        params = SamplingParams(temperature, top_k, top_p, seed)
        context = self.model.config.sequence_len
        for i, prompt in enumerate(prompts):
            if not 0 < len(prompt) < context:
                raise ConfigError(
                    f"prompt {i} has {len(prompt):,} tokens; a context of {context:,} takes 1 to "
                    f"{context - 1:,}, to leave room for an answer. Cut its oldest part"
                )
        jobs = [(i, s) for i in range(len(prompts)) for s in range(num_samples)]
        jobs.sort(key=lambda job: len(prompts[job[0]]), reverse=True)
        completions = [[""] * num_samples for _ in prompts]
        for first in range(0, len(jobs), max_batch):
            batch = jobs[first : first + max_batch]
            answers = self._generate(
                [prompts[i] for i, _ in batch], [s for _, s in batch], max_tokens, params
            )
            for (i, s), ids in zip(batch, answers, strict=True):
                completions[i][s] = self.tokenizer.decode(ids)
                on_end()
        return completions

    @torch.inference_mode()
    def _generate(self, prompts, samples, max_tokens, params) -> list[list[int]]:
        """The ids that follow each prompt, the longest prompt first; its room is that of all."""
        from transformers import GenerationConfig, LogitsProcessorList

        T, stops = len(prompts[0]), list(self.tokenizer.stop_ids)
        ids = torch.tensor([[self.tokenizer.bos] * (T - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts])

        def draw(so_far: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            n, position = len(samples), so_far.shape[1] - T
            noise = uniform([params.seed] * n, samples, [position] * n)
            tokens = torch.tensor(sample(logits.float(), [params] * n, noise), device=logits.device)
            return torch.full_like(logits, float("-inf")).scatter_(1, tokens[:, None], 0.0)

        room = min(max_tokens, self.model.config.sequence_len - T)
        pad = stops[0] if stops else self.tokenizer.bos
        wanted = GenerationConfig(
            max_new_tokens=room, eos_token_id=stops or None, pad_token_id=pad, do_sample=False
        )
        answers = self.model.model.generate(
            ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=wanted,
            logits_processor=LogitsProcessorList([draw]),
        )[:, T:].tolist()
        ends = [next((n for n, t in enumerate(a) if t in stops), len(a)) for a in answers]
        return [answer[:end] for answer, end in zip(answers, ends, strict=True)]

    @torch.inference_mode()
    def next_logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """(B, V) float32: the logits after the last token of each prompt; prompts of any lengths in
        one pass."""
        lengths = [len(prompt) for prompt in prompts]
        padded = torch.zeros(len(prompts), max(lengths), dtype=torch.int64)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        features = self.model.features(padded.to(self.model.device))
        last = torch.tensor(lengths, device=features.device) - 1
        return self.model.logits(features[torch.arange(len(prompts), device=features.device), last])


def load_transformers(
    path: Path | str, device: torch.device | str
) -> tuple[TransformersModel, TransformersTokenizer]:
    """(model, tokenizer) of a folder that AutoModelForCausalLM reads, in compute dtype.

    Raises CheckpointError for a folder that is not there or not whole, ConfigError without the
    package `transformers`.

    Example: model, tokenizer = load_transformers("./gpt2", "cpu")
    """
    require_package("transformers")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    if not Path(path).is_dir():
        raise CheckpointError(
            f"{path} is no folder; expected a Hugging Face model's, with config.json, weights and "
            f"tokenizer. Download one first: hf download openai-community/gpt2 --local-dir gpt2"
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


def context_of(model, tokenizer, most: int = 1 << 20) -> int:
    """Tokens of the model's context, by its configuration or its tokenizer's."""
    config = model.config.get_text_config()
    lengths = [getattr(config, name, None) for name in CONTEXT_NAMES]
    lengths += [tokenizer.model_max_length]
    for length in lengths:
        if isinstance(length, int) and 0 < length <= most:
            return length
    raise CheckpointError(
        f"{tokenizer.name_or_path}: config.json names no context length; expected one of "
        f"{', '.join(CONTEXT_NAMES)}"
    )
