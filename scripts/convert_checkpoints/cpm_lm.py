"""CPM-LM from its model-parallel PyTorch shards to a GPT2 in TensorFlow or HuggingFace naming.

The source is the folder with latest_checkpointed_iteration.txt, or one with mp_rank_00_model_states.pt and so on, any
number of shards. With R shards (weights are (out, in)):

| in a shard                                  | shape            | joined                                           |
| word_embeddings                             | (V'/R, H)        | axis 0; rows from vocab_size on are padding      |
| query_key_value                             | (3H/R, H)        | q of all shards, k of all, v of all; transposed  |
| attention.dense, mlp.dense_4h_to_h          | (H, H/R), (H, I/R) | axis 1; transposed                             |
| mlp.dense_h_to_4h                           | (I/R, H)         | axis 0; transposed                               |
| position_embeddings, norms, output biases   |                  | the same in all                                  |

Without --config: vocabulary 30000, 32 heads, the other sizes from the weights.

    python -m scripts.convert_checkpoints.cpm_lm CPM-large/ cpm/ --to huggingface --check
"""

import re
from pathlib import Path

import numpy as np
from conversion import convert, folder_of, make_parser, read_json, run

from bert4x.models.checkpoint import Checkpoint, CheckpointError, open_checkpoint

SHARD = "mp_rank_{:02d}_model_states.pt"
COUNTER = "latest_checkpointed_iteration.txt"
VOCAB_SIZE, HEADS = 30000, 32

# Name in the shards (after transformer.layers.i. for a block) -> name of GPT2, how shards are joined, transposed.
TABLE = {
    "word_embeddings.weight": ("wte.weight", "rows", False),
    "position_embeddings.weight": ("wpe.weight", "same", False),
    "transformer.final_layernorm.weight": ("ln_f.weight", "same", False),
    "transformer.final_layernorm.bias": ("ln_f.bias", "same", False),
}
BLOCK_TABLE = {
    "input_layernorm.weight": ("ln_1.weight", "same", False),
    "input_layernorm.bias": ("ln_1.bias", "same", False),
    "attention.query_key_value.weight": ("attn.c_attn.weight", "thirds", True),
    "attention.query_key_value.bias": ("attn.c_attn.bias", "thirds", False),
    "attention.dense.weight": ("attn.c_proj.weight", "columns", True),
    "attention.dense.bias": ("attn.c_proj.bias", "same", False),
    "post_attention_layernorm.weight": ("ln_2.weight", "same", False),
    "post_attention_layernorm.bias": ("ln_2.bias", "same", False),
    "mlp.dense_h_to_4h.weight": ("mlp.c_fc.weight", "rows", True),
    "mlp.dense_h_to_4h.bias": ("mlp.c_fc.bias", "rows", False),
    "mlp.dense_4h_to_h.weight": ("mlp.c_proj.weight", "columns", True),
    "mlp.dense_4h_to_h.bias": ("mlp.c_proj.bias", "same", False),
}
AXES = {"rows": 0, "thirds": 0, "columns": 1}


class MegatronCheckpoint(Checkpoint):
    """The shards of one model under HuggingFace's GPT2 names; each variable is joined when it is read.

    Args:
        paths: files of all shards, in the order of their ranks.
        vocab_size: rows of the token table that are tokens.
    Raises: CheckpointError if the shards are not one model's, or their number is wrong.
    """

    def __init__(self, paths, vocab_size=VOCAB_SIZE):
        self._shards, self._rows = [open_checkpoint(path) for path in paths], {}
        first = self._shards[0]
        for path, shard in zip(paths, self._shards, strict=True):
            if {n: shard.shape(n) for n in shard.names} != {n: first.shape(n) for n in first.names}:
                raise CheckpointError(f"{path} and {paths[0]} hold other variables or shapes: not shards of one model")
        entries = {}
        for name in first.names:
            new, how, turned = translate(name)
            self._rows[new] = name, how, turned
            entries[new] = self._joined_shape(name, how, turned), first.dtype(name)
        super().__init__(str(Path(paths[0]).parent), entries)
        self._check_count(entries)
        self._vocab_size = min(vocab_size, entries["wte.weight"][0][0])
        entries["wte.weight"] = ((self._vocab_size, *entries["wte.weight"][0][1:]), entries["wte.weight"][1])

    def _joined_shape(self, name, how, turned):
        shape = list(self._shards[0].shape(name))
        if how != "same":
            shape[AXES[how]] *= len(self._shards)
        return tuple(shape[::-1] if turned else shape)

    def _check_count(self, entries):
        """The norms are whole in every shard, so they tell how many shards the fused kernels were cut into."""
        needed = ("wte.weight", "ln_f.bias", "h.0.attn.c_attn.bias")
        missing = [name for name in needed if name not in entries]
        if missing:
            raise CheckpointError(f"{self.source} is no CPM-LM: nothing there becomes {', '.join(missing)}")
        width, fused = entries["ln_f.bias"][0][0], entries["h.0.attn.c_attn.bias"][0][0]
        if fused != 3 * width:
            count = len(self._shards)
            raise CheckpointError(
                f"{self.source} has {count} shards; the shapes say {3 * width * count // fused}: get exactly those"
            )

    def _load(self, name, rows):
        stored, how, turned = self._rows[name]
        if how == "same":
            array = self._shards[0].read(stored)
        elif how == "thirds":
            parts = [np.split(shard.read(stored), 3) for shard in self._shards]
            array = np.concatenate([part[i] for i in range(3) for part in parts])
        else:
            array = np.concatenate([shard.read(stored) for shard in self._shards], axis=AXES[how])
        array = array[: self._vocab_size] if name == "wte.weight" else array
        array = array.T if turned else array
        return array if rows is None else array[rows]

    def close(self):
        for shard in self._shards:
            shard.close()


def translate(name):
    """(GPT2's name, how shards are joined, whether transposed) for a variable of the shards; unknown ones stay."""
    block = re.match(r"transformer\.layers\.(\d+)\.", name)
    found = BLOCK_TABLE.get(name[block.end() :]) if block else TABLE.get(name)
    if found is None:
        return name, "same", False
    return (f"h.{block[1]}.{found[0]}", *found[1:]) if block else found


def find_shards(source):
    """Paths of all shards in a folder, or in the folder of its latest iteration."""
    folder = folder_of(source)
    if (folder / COUNTER).is_file():
        folder = folder / (folder / COUNTER).read_text(encoding="utf-8").strip()
    ranks = [re.fullmatch(r"mp_rank_(\d+)_model_states\.pt", path.name) for path in folder.glob("mp_rank_*")]
    ranks = sorted(int(match[1]) for match in ranks if match)
    missing = sorted(set(range(max(ranks, default=0) + 1)) - set(ranks))
    if missing:
        raise FileNotFoundError(f"missing shards in {folder}: {', '.join(map(SHARD.format, missing))}")
    return [folder / SHARD.format(rank) for rank in ranks]


def config_of(source):
    """CPM-LM's configuration with the sizes of the weights."""
    vocab_size, width = source.shape("wte.weight")
    if width % HEADS:
        raise ValueError(f"the width {width} is no multiple of CPM-LM's {HEADS} heads; give --config")
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": sum(name.endswith(".ln_1.bias") for name in source.names),
        "num_attention_heads": HEADS,
        "intermediate_size": source.shape("h.0.mlp.c_fc.bias")[0],
        "max_position_embeddings": source.shape("wpe.weight")[0],
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def main(argv=None):
    arguments = make_parser(__doc__).parse_args(argv)
    config = read_json(arguments) if arguments.config else None
    vocab_size = (config or {}).get("vocab_size", VOCAB_SIZE)
    with MegatronCheckpoint(find_shards(arguments.source), vocab_size) as source:
        convert(source, config or config_of(source), arguments, model="cpm")


if __name__ == "__main__":
    run(main)
