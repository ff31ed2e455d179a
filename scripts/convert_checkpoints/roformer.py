"""RoFormer and RoFormerV2: Zhuiyi's TensorFlow checkpoints and HuggingFace's.

| option | names in the source                              | left out                                   |
| -      | bert/... or roformer.                            | the rotary table (encoder.embed_positions) |
| --v2   | bert/... or roformer. , kernels and tables alone | the same                                   |

    python -m scripts.convert_checkpoints.roformer chinese_roformer-char_L-12/bert_model.ckpt out/ --to huggingface
"""

from conversion import convert, make_parser, read_json, run
from views import View

from bert4x.models.checkpoint import open_checkpoint

DROPPED = [(r"embeddings[/.]position_embeddings|embed_positions", None)]


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--v2", action="store_true", help="the source is RoFormerV2")
    arguments = parser.parse_args(argv)
    config = read_json(arguments)
    with open_checkpoint(arguments.source) as source:
        convert(View(source, DROPPED), config, arguments, model="roformer_v2" if arguments.v2 else "roformer")


if __name__ == "__main__":
    run(main)
