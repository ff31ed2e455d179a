"""GPT2-ML: the TensorFlow release without its optimizer slots (newslm/.../adafactor_v, adam_m, global_step).

The family has no HuggingFace names; --to huggingface writes the same variables to model.safetensors.

    python -m scripts.convert_checkpoints.gpt2_ml gpt2_ml/model.ckpt-220000 out/ --config configs/mega.json --check
"""

from conversion import convert, make_parser, read_json, run

from bert4x.models.checkpoint import open_checkpoint


def main(argv=None):
    arguments = make_parser(__doc__).parse_args(argv)
    config = read_json(arguments)
    with open_checkpoint(arguments.source) as source:
        convert(source, config, arguments, model="gpt2_ml")


if __name__ == "__main__":
    run(main)
