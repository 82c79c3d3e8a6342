"""Makes notebooks/train_on_colab.ipynb, whose only source this is.

    python dev/make_notebook.py                             keeps the outputs of unchanged cells
    DATA=packaged MINUTES=6 python dev/make_notebook.py --execute   runs it here, for new outputs

The outputs are those of the run; only the folders of the machine that ran it are renamed in them.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "train_on_colab.ipynb"
REPOSITORY = "https://github.com/karpathy/nanochat"
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    f"(https://colab.research.google.com/{REPOSITORY.removeprefix('https://').replace('.com', '')}"
    "/blob/main/notebooks/train_on_colab.ipynb)"
)

CELLS = [
    (
        "markdown",
        f"""
# Train your own chat assistant

{BADGE}

This notebook takes you from raw text to a model that answers you. You need no experience and no
paid account: a free T4 GPU is enough. Every stage says what it is for, runs one command of
nanochat, and shows what came out.

| stage | what the model learns |
|---|---|
| tokenizer | which pieces text is made of |
| base | language: to continue any text |
| mid | conversations, tools, multiple choice |
| SFT | to answer as an assistant |

**How to use it.** In the menu *Runtime*, choose *Change runtime type* and a GPU. Then choose *Run
all*. With the form's defaults training takes two hours; downloads and measuring come on top.

**If Colab disconnects**, open the notebook again and choose *Run all*: it goes on where it was,
because every checkpoint is also on your Google Drive.

The outputs that you see before you run it are of a small real run on two cores of a CPU, with six
minutes of training. Yours replace them.
""",
    ),
    (
        "markdown",
        """
## 1. The code, and what is here

This cell fetches nanochat, and prints the machine and the versions of the packages that matter.
""",
    ),
    (
        "code",
        f"""
#@title Get the code
import os, subprocess, sys
from pathlib import Path

REPOSITORY = "{REPOSITORY}"  #@param {{type:"string"}}
REPOSITORY = os.environ.get("REPOSITORY", REPOSITORY)

folders = [Path.cwd(), *Path.cwd().parents, Path.cwd() / "nanochat"]
checkout = next((f for f in folders if (f / "notebooks" / "colab.py").exists()), folders[-1])
if not checkout.exists():
    subprocess.run(["git", "clone", "-q", "--depth=1", REPOSITORY, str(checkout)], check=True)
if not (checkout / "notebooks" / "colab.py").exists():
    raise SystemExit(f"{{REPOSITORY}} has no notebooks/colab.py: name this notebook's repository")
os.chdir(checkout)
sys.path.insert(0, str(checkout))

from notebooks import setup

setup.print_versions()
""",
    ),
    (
        "markdown",
        """
Colab comes with most of what is needed. What is missing is installed by name. PyTorch is not
touched: Colab's own fits its GPU. Some small packages are only text: encyclopedia articles,
speeches, plays.
""",
    ),
    ("code", "#@title Install what is missing\nsetup.install()"),
    (
        "markdown",
        """
## 2. Choose

- `DEPTH`, the number of layers, is the dial that sets everything else: width, batch, learning
  rates. 0 chooses the deepest that fits your GPU's memory and sees enough text in your minutes.
- `MINUTES` of training, all stages together.
- `DATA` to learn language from. `auto` is FineWeb-EDU, educational web pages, on a GPU, and the
  text of the packages (`packaged`) without one. The path of a folder with your own `.txt`, `.md`,
  `.jsonl` or `.parquet` files works too.
- `DRIVE`: keep a second copy of every checkpoint on your Google Drive. Without it a disconnect
  loses the run. A free Drive holds 15 GB; two checkpoints of a stage are kept, and older ones go to
  its bin, which you can empty.
- Another `MODEL_TAG` starts another run beside this one.
""",
    ),
    (
        "code",
        """
#@title Settings
DEPTH = 0  #@param {type:"integer"}
MINUTES = 120.0  #@param {type:"number"}
DATA = "auto"  #@param ["auto", "fineweb-edu", "climbmix", "packaged"] {allow-input: true}
MODEL_TAG = "colab"  #@param {type:"string"}
DRIVE = True  #@param {type:"boolean"}
DRIVE_FOLDER = "/content/drive/MyDrive/nanochat"  #@param {type:"string"}

from notebooks import colab

drive = DRIVE_FOLDER if DRIVE else ""
run = colab.open_run(depth=DEPTH, minutes=MINUTES, data=DATA, model_tag=MODEL_TAG, drive=drive)
s = run.settings
""",
    ),
    (
        "markdown",
        """
## 3. The tokenizer

A model does not read letters but *tokens*: numbers, each for a piece of text. The tokenizer learns
the pieces from your text. It starts with single bytes, joins the two neighbours that occur together
most often into a new token, and repeats that until the vocabulary is full. So frequent words become
one token, and a rare word is spelled in a few. *Characters per token* says how well it compresses.
""",
    ),
    (
        "code",
        """
#@title Train the tokenizer
run.script(
    "tok_train", data=s.data, vocab_size=s.vocab_size, max_chars=s.max_chars, **s.tok_flags,
    resume=True,
)
run.script("tok_eval")
""",
    ),
    (
        "code",
        """
#@title How text is cut into tokens
TEXT = "The capital of Peru is Lima, and 37 * 12 = 444."  #@param {type:"string"}
run.show_tokens(TEXT)
""",
    ),
    (
        "markdown",
        """
## 4. Pretraining: the base model

The longest stage. The model reads text and guesses each next token; the *loss* says how surprised
it was. A model that knows nothing is as surprised as by rolling a die with a side for every token.
Each step changes the weights a little, so that what came next would have surprised it less.

The right curve is measured on text that training never sees, in *bits per byte*: how many bits an
ideal compressor that uses this model would need for one byte of text. Unlike the loss it can be
compared between tokenizers. If the left curve fell and the right one rose, the model would be
learning by heart.

The curves are drawn anew every 15 seconds. You may stop the cell: it saves first, and *Run all*
goes on.
""",
    ),
    (
        "code",
        """
#@title Pretrain
run.script(
    "base_train", data=s.data, num_shards=s.num_shards, depth=s.depth, head_dim=s.head_dim,
    sequence_len=s.sequence_len, tie_word_embeddings=s.tied, logit_softcap="None",
    total_batch_size=s.base_tokens_per_step, target_seconds=s.base_seconds,
    eval_tokens=s.eval_tokens, save_every=s.save_every, **s.base_flags,
)
""",
    ),
    (
        "markdown",
        """
The base model continues text. It does not know yet that it should answer: asked a question, it may
go on with another question. The next cell measures it on text of training and on text that it has
not seen, and lets it write.
""",
    ),
    (
        "code",
        """
#@title Measure the base model
run.script("base_eval", num_shards=s.num_shards, eval_tokens=s.eval_tokens)
""",
    ),
    (
        "markdown",
        """
## 5. Midtraining: conversations and tools

Now the text is conversations, with special tokens that say who speaks. The model also meets
multiple choice, facts, spelling, and a *tool*: it learns to write a sum between two special tokens,
where a calculator works it out and the result is put in.

From here on the loss is taken on what the assistant says alone.
""",
    ),
    (
        "code",
        """
#@title Midtrain
run.script(
    "mid_train", base_tag=run.tag, mixture=s.mid_mixture, val_mixture=s.val_mixture, mask_loss=True,
    total_batch_size=s.mid_tokens_per_step, target_seconds=s.mid_seconds,
    eval_tokens=s.eval_tokens, save_every=s.save_every, **s.mid_flags,
)
""",
    ),
    (
        "markdown",
        """
## 6. Fine-tuning: the assistant

The same with fewer, chosen conversations, one a row as in a real chat, and a tenth of the learning
rate.
""",
    ),
    (
        "code",
        """
#@title Fine-tune
run.script(
    "chat_sft", parent_tag=run.tag, mixture=s.sft_mixture, val_mixture=s.val_mixture,
    target_seconds=s.sft_seconds, eval_tokens=s.eval_tokens, save_every=s.save_every, **s.sft_flags,
)
""",
    ),
    (
        "markdown",
        """
## 7. How good is it?

Questions that it was not trained on, each task with its standard error: with few questions a
difference of a few percent means nothing. In multiple choice with four options, a guess is right in
25%.
""",
    ),
    (
        "code",
        """
#@title Evaluate
run.script("chat_eval", tasks=s.tasks, limit=s.questions)
""",
    ),
    (
        "markdown",
        """
## 8. The report

What was done, how long it took, how fast and how good, from the run's own records. `report.html`
beside it has all figures, and `model_card.md` is what you publish with the model.
""",
    ),
    ("code", "#@title Report\nrun.show_report()"),
    (
        "markdown",
        """
## 9. Talk to it

Write a question and run the cell. It remembers the conversation; `/clear` as the question forgets
it. `[python] 37*12 = 444` in an answer is the model using its calculator.
""",
    ),
    (
        "code",
        """
#@title Ask
QUESTION = "What is 37 * 12?"  #@param {type:"string"}
run.chat.say(QUESTION);
""",
    ),
    (
        "code",
        """
#@title Ask something else
QUESTION = "What is the capital of Peru?"  #@param {type:"string"}
run.chat.say(QUESTION);
""",
    ),
    (
        "markdown",
        """
Nanochat also has a chat page. On Colab it can be opened through Colab's own proxy, which shows it
to you alone: Colab's terms forbid to serve others, so there is no tunnel here. Some browsers do not
let the proxy through; then use the cells above. Switch it on and run the cell again:
""",
    ),
    (
        "code",
        """
#@title The chat page
OPEN_PAGE = False  #@param {type:"boolean"}
if OPEN_PAGE or os.environ.get("OPEN_PAGE"):
    run.open_page()
else:
    print("OPEN_PAGE is off")
""",
    ),
    (
        "markdown",
        """
## 10. Take it with you

Two forms of the same model:

- a **Hugging Face** folder, which `transformers` loads. It is loaded in a fresh process and
  compared with the model that you trained before the cell says that it is done.
- a **GGUF** file for llama.cpp, Ollama and LM Studio on your own computer. Here it is not compared
  with the model, because llama.cpp would have to be compiled first; docs/publishing.md says how.
""",
    ),
    (
        "code",
        """
#@title Export
hf, gguf = run.folder_for("hf_model"), run.folder_for("gguf_model")
run.script("export_to_huggingface", source="sft", output_dir=hf, overwrite=True)
run.script("export_to_gguf", source="sft", output_dir=gguf, type="q8_0", unproved=True)
""",
    ),
    (
        "code",
        """
#@title Download
run.download(hf, gguf)
""",
    ),
    (
        "markdown",
        """
## What next

- More minutes: set `MINUTES` higher with another `MODEL_TAG`. Twice the compute is worth a deeper
  model.
- Your own text as `DATA`: see docs/data.md. Your own conversations: `mixture=` above, likewise.
- Rewards: `python -m scripts.chat_rl` goes on from here (docs/training.md).
- How it works: docs/tour.md goes through the code, from a byte to an answer.
- To publish: `python scripts/export_to_huggingface.py --help`, `--push-to`.
""",
    ),
]


def make() -> nbformat.NotebookNode:
    """The notebook without outputs."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata = {
        "accelerator": "GPU",
        "colab": {"gpuType": "T4", "provenance": [], "toc_visible": True},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, (kind, text) in enumerate(CELLS):
        new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        notebook.cells.append(new(text.strip(), id=f"cell-{number:02}"))
    return notebook


def keep_outputs(notebook: nbformat.NotebookNode) -> None:
    """Those of the committed notebook, for cells that are as they were."""
    old = {cell.source: cell for cell in nbformat.read(NOTEBOOK, 4).cells}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if cell.source not in old:
                print(f"no outputs, because the cell changed: {cell.source.splitlines()[0]}")
            else:
                cell.outputs = old[cell.source].outputs
                cell.execution_count = old[cell.source].execution_count


def execute(notebook: nbformat.NotebookNode) -> None:
    """Runs it in a new base folder, which is called /content in the outputs, as on Colab."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder).resolve()
        os.environ |= {"NANOCHAT_BASE_DIR": str(base), "IPYTHONDIR": f"{base}/.ipython"}
        os.environ |= {"PYTHONPATH": str(ROOT)}
        where = {"metadata": {"path": str(ROOT)}}
        NotebookClient(notebook, timeout=None, resources=where, record_timing=False).execute()
        renamed = {str(base): "/content/data", str(ROOT): "/content/nanochat", sys.prefix: "python"}
        renamed |= {f"{tempfile.gettempdir()}/": "/content/temporary/"}
        for cell in notebook.cells:
            if cell.cell_type == "code":
                text = json.dumps(cell.outputs)
                for here, there in renamed.items():
                    text = text.replace(here, there)
                cell.outputs = [nbformat.from_dict(output) for output in json.loads(text)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--execute", action="store_true", help="run it here, and keep its outputs")
    notebook = make()
    if parser.parse_args().execute:
        execute(notebook)
    else:
        keep_outputs(notebook)
    notebook.metadata.language_info = {"name": "python"}
    nbformat.validate(notebook)
    NOTEBOOK.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    print(f"{NOTEBOOK}: {NOTEBOOK.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
