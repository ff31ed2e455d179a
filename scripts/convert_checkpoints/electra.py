"""ELECTRA: the discriminator or the generator of a pretraining checkpoint, or a file that holds one of them.

A pretraining checkpoint of TensorFlow holds both networks, which share the embeddings:

| names in the file             | discriminator | generator |
| electra/embeddings            | yes           | yes       |
| electra/embeddings_project, electra/encoder, discriminator_predictions | yes | |
| generator/embeddings_project, generator/encoder, generator_predictions | | yes |

    python -m scripts.convert_checkpoints.electra electra_small/electra_small out/ --part generator --to huggingface
"""

from conversion import convert, make_parser, read_json, run
from views import View

from bert4x.models.checkpoint import CheckpointError, open_checkpoint

OTHERS = {
    "discriminator": r"^generator(_predictions)?/",
    "generator": r"^electra/(encoder|embeddings_project)/|^discriminator_predictions/",
}


def convert_part(source, config, arguments, part):
    """Convert one of the two networks that an open checkpoint holds."""
    source = View(source, [(OTHERS[part], None)])
    if part == "generator":
        config = generator_config(source, config)
    convert(source, config, arguments, model="electra", with_mlm=part == "generator")


def only_part(source):
    """'discriminator' or 'generator' for a file that holds one of them."""
    generator = any(name.startswith("generator") for name in source.names)
    both = generator and any(name.startswith(("discriminator", "electra/encoder")) for name in source.names)
    if both:
        raise CheckpointError(
            f"{source.source} holds a discriminator and a generator: convert each with "
            "python -m scripts.convert_checkpoints.electra --part"
        )
    return "generator" if generator else "discriminator"


def generator_config(source, config):
    """The generator's configuration: what the discriminator's says, with the sizes of the generator's weights."""
    if source.naming == "huggingface":
        return config
    kernel = "generator/encoder/layer_0/intermediate/dense/kernel"
    if kernel not in source:
        raise CheckpointError(f"{source.source} holds no generator: {kernel} is missing")
    hidden, inner = source.shape(kernel)
    if hidden == config["hidden_size"]:  # the file or the configuration is a generator's own
        return config
    return config | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": max(1, hidden // 64),
        "embedding_size": source.shape("electra/embeddings/word_embeddings")[1],
    }


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--part", choices=sorted(OTHERS), help="needed if the checkpoint holds both networks")
    arguments = parser.parse_args(argv)
    config = read_json(arguments)
    with open_checkpoint(arguments.source) as source:
        convert_part(source, config, arguments, arguments.part or only_part(source))


if __name__ == "__main__":
    run(main)
