"""T5, T5.1.1, mT5: mesh TensorFlow checkpoints, without their optimizer slots, and HuggingFace's.

| names in the source                                    | version                       |
| shared/embedding, .../layer_norm/scale                 | t5.1.0; t5.1.1 with logits    |
| .../rms_norm/scale                                     | mt5.1.1                       |
| shared.weight, encoder.block.0.layer.0....             | by lm_head.weight             |
| ..._slot_v, _slot_vr, _slot_vc, _slot_m, global_step   | left out                      |

A mesh checkpoint has no JSON: without --config all sizes come from the weights.

    python -m scripts.convert_checkpoints.t5 mt5_small/model.ckpt-1000000 out/ --to huggingface --check
    python -m scripts.convert_checkpoints.t5 mt5-small/ out/ --model mt5.1.1 --to google --check
"""

import re

from conversion import convert, make_parser, read_json, run
from views import View

from bert4x.models import FAMILIES
from bert4x.models.checkpoint import CheckpointError, open_checkpoint

# An unused table in early files.
DROPPED = [(r"EncDecAttention[./]relative_attention_bias", None)]
ATTENTION = "encoder/block_000/layer_000/SelfAttention"
INNER = "encoder/block_000/layer_001/DenseReluDense"


def config_of(source):
    """A configuration in Google's style, from the shapes in a mesh checkpoint."""
    if f"{ATTENTION}/q" not in source or f"{ATTENTION}/relative_attention_bias" not in source:
        raise CheckpointError(f"{source.source} is no mesh checkpoint of T5; give --config")
    vocab_size, hidden_size = source.shape("shared/embedding")
    heads, buckets = source.shape(f"{ATTENTION}/relative_attention_bias")
    gated = f"{INNER}/wi_0/kernel" in source
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": blocks(source, "encoder"),
        "num_decoder_layers": blocks(source, "decoder"),
        "num_attention_heads": heads,
        "attention_head_size": source.shape(f"{ATTENTION}/q")[1] // heads,
        "intermediate_size": source.shape(f"{INNER}/wi_0/kernel" if gated else f"{INNER}/wi/kernel")[1],
        "hidden_act": ["gelu", "linear"] if gated else "relu",
        "hidden_dropout_prob": 0.1,
        "relative_attention_num_buckets": buckets,
    }


def blocks(source, stack):
    """Number of blocks of a stack; one that is missing in between shows as missing weights later."""
    numbers = [re.match(rf"{stack}/block_(\d+)/", name) for name in source.names]
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)


def main(argv=None):
    parser = make_parser(__doc__)
    names = sorted(name for name in FAMILIES if "t5" in name)
    parser.add_argument("--model", choices=names, default="t5", help="mt5.1.1 writes rms_norm for layer_norm to google")
    arguments = parser.parse_args(argv)
    with open_checkpoint(arguments.source) as source:
        view = View(source, DROPPED)
        mesh = arguments.config is None and view.naming == "google"
        convert(view, config_of(view) if mesh else read_json(arguments), arguments, model=arguments.model)


if __name__ == "__main__":
    run(main)
