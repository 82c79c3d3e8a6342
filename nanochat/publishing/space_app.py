"""A chat page for a model on the Hugging Face Hub, made to run as app.py of a Gradio Space.

The model is the one that the environment variable MODEL_ID names, else the file model_id.txt.
"""

import os
import threading
from pathlib import Path

import gradio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

NEW_TOKENS = 256


def content_text(content) -> str:
    """The text of a message, whether Gradio gives it as a string or as a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def make_prompt(tokenizer, history: list[dict], message: str, room: int) -> torch.Tensor:
    """Ids (1, T) of the chat so far, without its oldest turns where there is no room for them."""
    turns = [{"role": m["role"], "content": content_text(m["content"])} for m in history]
    turns.append({"role": "user", "content": message})
    while True:
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        if ids.shape[1] <= room or len(turns) < 3:
            return ids[:, -room:]
        turns = turns[2:]


def make_answer(model, tokenizer):
    """A function of (message, history) that yields the answer as it grows."""
    context = model.config.max_position_embeddings
    new_tokens = min(NEW_TOKENS, context // 2)

    def answer(message: str, history: list[dict]):
        ids = make_prompt(tokenizer, history, message, context - new_tokens).to(model.device)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        options = {"max_new_tokens": new_tokens, "do_sample": True, "temperature": 0.6, "top_k": 50}
        options |= {"attention_mask": torch.ones_like(ids), "streamer": streamer}

        def generate():
            try:
                model.generate(ids, **options)
            finally:
                streamer.end()  # also where it failed: or the page would wait for ever

        worker = threading.Thread(target=generate)
        worker.start()
        text = ""
        for piece in streamer:
            text += piece
            yield text
        worker.join()
        if not text:
            yield "(no answer)"

    return answer


def build(model_id: str) -> gradio.ChatInterface:
    """The page, its model loaded."""
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(model_id, dtype=dtype)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    title = Path(model_id).name
    return gradio.ChatInterface(make_answer(model, tokenizer), title=title, api_name="chat")


def main() -> None:
    named = Path(__file__).with_name("model_id.txt")
    build(os.environ.get("MODEL_ID") or named.read_text(encoding="utf-8").strip()).launch()


if __name__ == "__main__":
    main()
