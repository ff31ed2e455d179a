"""A finished or running run -> a small directory for `build_transformer_model` and `Tokenizer`, weights in float16.

    python scripts/pretrain/export.py run/ --output examples/pretrained/bert_tiny_zh --corpus corpus.md

Written: the configuration, vocab.txt, tokenizer_config.json, model.safetensors, curves.png, curves.csv, and a card,
README.md, whose figures come from the run.
"""

import argparse
import csv
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from records import Shards, find_shards

from bert4x.models import build_transformer_model

CARD = """# {name}

A small Chinese model for examples and tests: it is loaded in a second and fine-tuned in minutes on a CPU. It is no
substitute for a full-sized pretrained model.

    model = build_transformer_model("examples/pretrained/{name}"{options})
    tokenizer = Tokenizer("examples/pretrained/{name}")

| | |
| --- | --- |
| architecture | {shape} |
| weights | {weights:,}, stored in float16 ({size:.1f} MB) |
| vocabulary | {vocab:,} tokens: characters, and pieces of words in Latin letters and of numbers; lower case |
| objective | {objective} |
| rows | {length} tokens |
| steps | {step:,} updates, {tokens:.1f} million tokens, padding included |
| time | {hours:.2f} h of training on 2 shared CPU cores ({speed:,.0f} tokens/s on average) |
| held-out accuracy | {accuracy:.3f} of the predicted tokens |
| held-out cross-entropy | {loss:.3f} nats; perplexity {perplexity:.1f} |

The held-out texts are the last 2 % of the documents of each source. Always the commonest token is right for
{commonest:.3f} of them, and frequencies alone give a cross-entropy of {unigram:.3f} nats.

The curves are those of the last command below.

![curves](curves.png)

## Corpus

{corpus}

Parts for validation and test are left out, and so is every text that also occurs in one of them
(`scripts/pretrain/sources.py`). The weights are published under Apache-2.0 as far as they are ours; parts of the corpus
are share-alike (CC BY-SA), see the table.

## Command

```bash
{command}
```

## Limits

A model of this size, trained on so few characters, knows common words and their neighbours, hardly any facts, and no
traditional characters to speak of. It repeats the opinions of its texts. Positions beyond {length} were never trained.
"""


def read_rows(run):
    """The rows of curves.csv, numbers as float."""
    with open(run / "curves.csv", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def stages(run):
    """[(settings, rows of curves.csv)] of the runs whose weights this one started from, oldest first, and its."""
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    before = Path(settings.get("checkpoint") or "").absolute().parent.parent  # FOLDER/checkpoint/FILE
    earlier = stages(before) if settings.get("checkpoint") and (before / "settings.json").exists() else []
    return [*earlier, (settings, read_rows(run))]


def command_of(settings, rows):
    """The command of a stage, and where it was stopped."""
    step = int(rows[-1]["step"])
    note = f"   # stopped after {step:,} updates" if step < settings["steps"] else ""
    return settings["command"] + note


def frequencies(settings):
    """(share of the commonest token, cross-entropy of the tokens' frequencies) on the held-out records."""
    counts, held_out = (
        np.bincount(np.concatenate([record[0] for record in Shards(find_shards(settings["shards"], part))]))
        for part in ("train", "valid")
    )
    size = max(len(counts), len(held_out))
    counts, held_out = (np.pad(part, (0, size - len(part))) for part in (counts, held_out))
    rates, shares = (counts + 1) / (counts + 1).sum(), held_out / held_out.sum()
    return {"commonest": float(shares[counts.argmax()]), "unigram": float(-shares @ np.log(rates))}


def objective_of(settings):
    """What was predicted, in words."""
    words = [settings["objective"]]
    if settings["objective"] != "gpt":
        words.append(f"mask rate {settings['mask_rate']}")
    if settings.get("single_tokens"):
        words.append(f"in {settings['single_tokens']:.0%} of the rows token by token, in the others by words")
    return ", ".join(words)


def facts_of(runs, builder, size):
    """What the card says about the runs that a model went through."""
    settings, last = runs[-1][0], runs[-1][1][-1]
    steps = [int(rows[-1]["step"]) for _, rows in runs]
    rows = [s["batch_size"] * s["accumulation"] * step for (s, _), step in zip(runs, steps, strict=True)]
    tokens, hours = sum(rows) * settings["length"], sum(rows[-1]["hours"] for _, rows in runs)
    return frequencies(settings) | {
        "shape": f"{builder.model_type}, {builder.num_hidden_layers} layers, width {builder.hidden_size}, "
        f"{builder.num_attention_heads} heads, feed-forward {builder.intermediate_size}",
        "weights": builder.model.count_params(), "size": size / 1e6, "vocab": builder.vocab_size,
        "step": sum(steps), "length": settings["length"], "tokens": tokens / 1e6, "hours": hours,
        "speed": tokens / hours / 3600, "perplexity": last["perplexity"],
        "accuracy": last.get("val_tokens_accuracy", last.get("val_accuracy", 0.0)),
        "loss": last.get("val_tokens_loss", last.get("val_loss", 0.0)),
        "objective": objective_of(settings), "command": "\n".join(command_of(*run) for run in runs),
    }


def export(run, output, corpus=""):
    """Write the directory; returns the facts of its card."""
    run, output = Path(run), Path(output)
    runs = stages(run)
    settings = runs[-1][0]
    output.mkdir(parents=True, exist_ok=True)
    for path in (run / "checkpoint").iterdir():
        if path.suffix in (".json", ".txt"):
            shutil.copy(path, output / path.name)
    for name in ("curves.png", "curves.csv"):
        if (run / name).exists():
            shutil.copy(run / name, output / name)
    is_bert = settings["objective"] != "gpt"
    heads = {"with_mlm": "linear", "with_nsp": settings["objective"] == "mlm+sop"} if is_bert else {}
    builder = build_transformer_model(str(run / "checkpoint"), return_keras_model=False, **heads)
    builder.save_weights_as_checkpoint(str(output / "model.safetensors"), dtype="float16")
    facts = facts_of(runs, builder, (output / "model.safetensors").stat().st_size)
    options = ', with_mlm="linear"' if is_bert else ""
    card = CARD.format(name=output.name, options=options, corpus=corpus.strip(), **facts)
    (output / "README.md").write_text(card, encoding="utf-8")
    return facts


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder that train.py wrote")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--corpus", help="file with a table of the corpus, as sources.py prints it, for the card")
    args = parser.parse_args(argv)
    corpus = Path(args.corpus).read_text(encoding="utf-8") if args.corpus else ""
    facts = export(args.run, args.output, corpus)
    print(json.dumps(facts, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
