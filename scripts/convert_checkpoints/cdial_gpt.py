"""CDial-GPT: HuggingFace's PyTorch files to TensorFlow, with [PAD] as id 0.

| in the source                | in the output                  |
| row 0 [CLS], row 1 [PAD]     | row 0 [PAD], row 1 [CLS]       |
| lines 1 and 2 of vocab.txt   | exchanged too                  |

--keep-order leaves both as they are.

    python -m scripts.convert_checkpoints.cdial_gpt CDial-GPT_LCCC-base/ out/ --check
"""

import numpy as np
from conversion import convert, make_parser, read_json, run
from views import View

from bert4x.models.checkpoint import open_checkpoint

TABLES = ("tokens_embed.weight", "lm_head.weight", "gpt/embeddings/word_embeddings")


def exchanged(array):
    """A table with rows 0 and 1 exchanged."""
    return np.concatenate([array[1::-1], array[2:]])


def exchanged_lines(lines):
    """A vocabulary's lines, the first two exchanged."""
    return [*lines[1::-1], *lines[2:]]


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--keep-order", action="store_true", help="do not exchange rows 0 and 1")
    arguments = parser.parse_args(argv)
    config = read_json(arguments)
    edits, companions = {}, {}
    with open_checkpoint(arguments.source) as source:
        if not arguments.keep_order:
            config = {**config, "mask_zero": True}  # id 0 is the padding from now on
            edits = {name: exchanged for name in source.names if name.endswith(TABLES)}
            companions = {"vocab.txt": exchanged_lines}
        convert(View(source, edits=edits), config, arguments, model="gpt", companions=companions)


if __name__ == "__main__":
    run(main)
