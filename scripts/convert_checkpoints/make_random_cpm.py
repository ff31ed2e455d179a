"""Random CPM-LM of any size in its released format: float16 shards of a model-parallel run.

    python -m scripts.convert_checkpoints.make_random_cpm out/                       # the full 2.6 billion, 5.2 GB
    python -m scripts.convert_checkpoints.make_random_cpm out/ --layers 2 --width 64 --inner 128 --vocab 100
"""

import argparse
import os
from pathlib import Path

import numpy as np
from conversion import run
from cpm_lm import BLOCK_TABLE, COUNTER, SHARD, TABLE
from tqdm import tqdm

from bert4x.models.tensor_writer import aside

ITERATION = "80000"


def shapes(arguments):
    """{name: shape in one shard}."""
    width, inner, count = arguments.width, arguments.inner, arguments.shards
    by_name = {
        "word_embeddings.weight": (-(-arguments.vocab // count), width),
        "position_embeddings.weight": (arguments.positions, width),
        "attention.query_key_value.weight": (3 * width // count, width),
        "attention.query_key_value.bias": (3 * width // count,),
        "attention.dense.weight": (width, width // count),
        "mlp.dense_h_to_4h.weight": (inner // count, width),
        "mlp.dense_h_to_4h.bias": (inner // count,),
        "mlp.dense_4h_to_h.weight": (width, inner // count),
    }
    found = {name: by_name.get(name, (width,)) for name in TABLE}
    for index in range(arguments.layers):
        found |= {f"transformer.layers.{index}.{name}": by_name.get(name, (width,)) for name in BLOCK_TABLE}
    return found


def make_shard(arguments, rank):
    """{name: float16 tensor}; what all shards share is drawn alike."""
    import torch

    state = {}
    for number, (name, shape) in enumerate(shapes(arguments).items()):
        how = {**TABLE, **BLOCK_TABLE}[name.split(".", 3)[3] if ".layers." in name else name][1]
        random = np.random.default_rng([arguments.seed, number, 0 if how == "same" else rank])
        values = random.standard_normal(shape, "float32") * 0.02 + name.endswith("norm.weight")
        state[name] = torch.from_numpy(values.astype("float16"))
    return state


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory to make; must not exist")
    sizes = {"layers": 32, "width": 2560, "inner": 10240, "vocab": 30000, "positions": 1024, "shards": 2, "seed": 0}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.width % arguments.shards or arguments.inner % arguments.shards:
        parser.error(f"--width and --inner must be multiples of --shards, {arguments.shards}")
    if arguments.output.exists():
        parser.error(f"{arguments.output} exists already")
    return arguments


def main(argv=None):
    arguments = parse(argv)
    import torch

    with aside(arguments.output.parent) as folder:
        folder = Path(folder) / arguments.output.name
        (folder / ITERATION).mkdir(parents=True)
        (folder / COUNTER).write_text(ITERATION, encoding="utf-8")
        for rank in tqdm(range(arguments.shards), desc="writing", unit="shard"):
            torch.save({"module": make_shard(arguments, rank)}, folder / ITERATION / SHARD.format(rank))
        os.rename(folder, arguments.output)


if __name__ == "__main__":
    run(main)
