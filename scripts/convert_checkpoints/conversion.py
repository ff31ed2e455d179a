"""The course of every conversion: command line, reading, writing aside with a progress bar, check, rename."""

import argparse
import glob
import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
from matching import describe, match, plan
from tqdm import tqdm

from bert4x.models.checkpoint import CheckpointError, open_checkpoint, write_safetensors, write_tensorflow
from bert4x.models.config import read_config
from bert4x.models.pretrained import pretrained_config
from bert4x.models.tensor_file import widen
from bert4x.models.tensor_writer import aside, narrow

CONFIGS = ("config.json", "bert_config.json", "albert_config.json", "electra_config.json")
# What lies beside a checkpoint and belongs to the new one too.
COMPANIONS = ("*vocab*.txt", "*.model", "vocab.json", "merges.txt", "tokenizer*.json", "special_tokens_map.json")
DTYPES = ("same", "float32", "float16", "bfloat16")
# Our option -> Google's key.
GOOGLE_KEYS = {
    "dropout_rate": "hidden_dropout_prob",
    "attention_dropout_rate": "attention_probs_dropout_prob",
    "max_position": "max_position_embeddings",
    "segment_vocab_size": "type_vocab_size",
}
TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh")


def make_parser(description, *, to="google"):
    """The command line that all converters share; `to` is the default naming of the output."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="checkpoint: TensorFlow prefix, .safetensors, .bin, .pt, or a directory")
    parser.add_argument("output", type=Path, help="directory to make; must not exist")
    parser.add_argument("--config", help="JSON of the source; default: the one beside it")
    parser.add_argument(
        "--to",
        choices=("google", "huggingface"),
        default=to,
        help="google: model.ckpt of TensorFlow; huggingface: model.safetensors (default: %(default)s)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 for google, same for huggingface")
    parser.add_argument("--max-shard-gb", type=_above_zero, help="split model.safetensors into files of this size")
    parser.add_argument("--ignore-unknown", action="store_true", help="leave out variables that the family lacks")
    parser.add_argument("--check", action="store_true", help="read back what was written and compare it")
    return parser


def _above_zero(text):
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"it must be above 0; got {text}")
    return number


def run(main):
    """Run a main function; what a user can mend becomes one message and exit status 1."""
    # an ended program cleans up too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was written")
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def folder_of(source):
    """The directory that a source is, or lies in."""
    path = Path(source)
    return path if path.is_dir() else path.parent


def read_json(arguments):
    """The configuration as a dict: --config, or the only known name beside the source."""
    if arguments.config is None:
        near = [folder_of(arguments.source) / name for name in CONFIGS]
        paths = [path for path in near if path.is_file()]
        if not paths and not glob.glob(glob.escape(str(arguments.source)) + "*"):
            raise FileNotFoundError(f"{arguments.source} does not exist, nor any file whose name begins so")
        if len(paths) != 1:
            raise ValueError(f"found {len(paths)} of {', '.join(CONFIGS)} in {near[0].parent}; give --config")
        arguments.config = paths[0]
    try:
        config = json.loads(Path(arguments.config).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{arguments.config} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{arguments.config} must hold a JSON object; it holds a {type(config).__name__}")
    return config


def convert(source, config, arguments, *, model=None, companions=None, **options):
    """Convert an open checkpoint into the directory `arguments.output`.

    Args:
        source: open Checkpoint with names of the family's Google or HuggingFace naming.
        config: dict, the source's configuration.
        model: name of the family; None: the configuration's model_type.
        companions: {file name: function of its lines} for vocabularies that change.
        options: builder options that the configuration does not say.
    """
    output = Path(arguments.output)
    if output.exists():
        raise ValueError(f"{output} exists already; name another directory, or remove it")
    if arguments.max_shard_gb and arguments.to == "google":
        raise ValueError("--max-shard-gb splits model.safetensors: it needs --to huggingface")
    dtype = arguments.dtype or ("float32" if arguments.to == "google" else "same")
    model = model or read_config(config)[1]
    builder, settings = describe(config, model, source, **options)
    found = match(builder, source, ignore_unknown=arguments.ignore_unknown)
    items = list(plan(builder, source, found, arguments.to, dtype))
    with aside(output.parent) as folder:
        folder = Path(folder) / output.name
        folder.mkdir()
        write_config(folder, arguments.to, dtype, config, builder, settings)
        copy_companions(folder_of(arguments.source), folder, companions or {})
        write(folder, arguments, items)
        if arguments.check:
            check(folder, source, found, model, options)
        os.rename(folder, output)
    count = sum(math.prod(item[1]) for item in items)
    checked = ", checked" if arguments.check else ""
    print(f"{output}: {len(items)} variables, {count:,} parameters{checked}; build it with model={model!r}")


def write_config(folder, naming, dtype, config, builder, settings):
    """Write config.json in the target's style; a source of the same style keeps all its keys."""
    if naming == "huggingface" and not _is_huggingface(config):
        config = pretrained_config(builder)
    elif naming == "google" and _is_huggingface(config):
        config = google_config(builder, settings)
    stated = {} if dtype == "same" else dict.fromkeys(config.keys() & {"dtype", "torch_dtype"}, dtype)
    text = json.dumps(config | stated, ensure_ascii=False, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _is_huggingface(config):
    return read_config(config)[2] == "huggingface"


def google_config(builder, settings):
    """The options under the keys of Google's files; 'gelu' stands for the form that the family means there."""
    config = {GOOGLE_KEYS.get(name, name): value for name, value in settings.items() if value is not None}
    act = settings["hidden_act"]
    acts = ["gelu_tanh" if name in TANH_GELUS else name for name in (act if isinstance(act, list) else [act])]
    acts = ["gelu" if name == builder.gelu["google"] else name for name in acts]
    return {name: value for name, value in config.items() if not name.startswith("with_")} | {
        "hidden_act": acts if isinstance(act, list) else acts[0]
    }


def copy_companions(source, folder, edits):
    """Copy vocabularies and tokenizers; `edits` changes the lines of some."""
    for path in sorted({path for pattern in COMPANIONS for path in source.glob(pattern)}):
        if path.name not in edits:
            shutil.copyfile(path, folder / path.name)
            continue
        lines = edits[path.name](path.read_text(encoding="utf-8").split("\n"))
        (folder / path.name).write_text("\n".join(lines), encoding="utf-8", newline="\n")


def write(folder, arguments, items):
    """Write the weights, tensor by tensor."""
    with tqdm(total=len(items), desc="writing", unit="variable") as bar:
        items = [(name, shape, dtype, _advancing(bar, fetch)) for name, shape, dtype, fetch in items]
        if arguments.to == "google":
            return write_tensorflow(folder / "model.ckpt", items)
        limit = arguments.max_shard_gb and int(arguments.max_shard_gb * 1e9)
        return write_safetensors(folder / "model.safetensors", items, max_shard_bytes=limit)


def _advancing(bar, fetch):
    def fetch_and_count():
        array = fetch()
        bar.update()
        return array

    return fetch_and_count


def check(folder, source, found, model, options):
    """Read a written directory as the library does, and compare each of its variables with the source's.

    Raises: CheckpointError naming the variables that differ.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with open_checkpoint(folder) as written:
        builder, _ = describe(config, model, written, **options)
        rows = match(builder, written)
        differing = [key for key in found.keys() ^ rows.keys()]
        for key in tqdm(found.keys() & rows.keys(), desc="checking", unit="variable"):
            (row, name), (new_row, new_name) = found[key], rows[key]
            wanted = _as_stored(row.kernel(source.read(name)), written.dtype(new_name))
            if not np.array_equal(wanted, new_row.kernel(written.read(new_name)), equal_nan=True):
                differing.append(key)
    if differing:
        raise CheckpointError(f"the check failed, nothing is kept; these differ: {sorted(differing)[:20]}")


def _as_stored(array, dtype):
    return widen(narrow(array)) if dtype == "bfloat16" else array.astype(dtype)
