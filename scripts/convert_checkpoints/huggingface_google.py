"""HuggingFace <-> Google TensorFlow naming, for every family that has both; OpenAI's GPT2 files too.

The family's weight table in bert4x.models gives both names of each variable, what is transposed and what is fused.

    python -m scripts.convert_checkpoints.huggingface_google bert-base-chinese/ chinese_L-12/ --to google --check
    python -m scripts.convert_checkpoints.huggingface_google chinese_L-12/ out/ --to huggingface --model bert
"""

import electra
from conversion import convert, make_parser, read_json, run

from bert4x.models import ELECTRA, FAMILIES, open_checkpoint
from bert4x.models.config import read_config


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--model", choices=sorted(FAMILIES), help="the family; default: model_type in config.json")
    arguments = parser.parse_args(argv)
    config = read_json(arguments)
    model = arguments.model or read_config(config)[1]
    with open_checkpoint(arguments.source) as source:
        if FAMILIES.get(model) is ELECTRA:
            electra.convert_part(source, config, arguments, electra.only_part(source))
        else:
            convert(source, config, arguments, model=model)


if __name__ == "__main__":
    run(main)
