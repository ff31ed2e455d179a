"""NEZHA and NEZHA-GEN: Huawei's TensorFlow and PyTorch checkpoints.

| option | names in the source                        | left out                    | built as                       |
| -      | bert/... or bert. (nezha. in transformers) | absolute positions, buffers | model='nezha'                  |
| --gen  | bert/... with absolute positions           | segment table               | model='bert', application='lm' |

    python -m scripts.convert_checkpoints.nezha NEZHA-Base/model.ckpt-900000 out/ --config bert_config.json
"""

from conversion import convert, make_parser, read_json, run
from views import View

from bert4x.models.checkpoint import open_checkpoint

DROPPED = [(r"embeddings[/.]position_embeddings|relative_positions_enc", None)]
DROPPED_GEN = [(r"embeddings[/.]token_type_embeddings", None)]
# Huawei's PyTorch files say bert. for what transformers calls nezha.
TORCH = [(r"^bert\.", "nezha.")]


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--gen", action="store_true", help="the source is NEZHA-GEN")
    arguments = parser.parse_args(argv)
    config = read_json(arguments)
    with open_checkpoint(arguments.source) as source:
        if arguments.gen:
            config = {**config, "type_vocab_size": 0}
            convert(View(source, DROPPED_GEN), config, arguments, model="bert")
        else:
            convert(View(source, DROPPED + TORCH), config, arguments, model="nezha")


if __name__ == "__main__":
    run(main)
