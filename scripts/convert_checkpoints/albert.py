"""ALBERT: Google's TF1 checkpoints, tf-hub modules, and brightmart's albert_zh releases named *_google.

| source                              | names              |
| Google TF1, brightmart google       | bert/..., cls/...  |
| tf-hub module (variables/variables) | module/bert/...    |
| HuggingFace                         | albert.encoder.... |

    python -m scripts.convert_checkpoints.albert albert_base_v2/ out/ --config albert_config.json --to huggingface
"""

from pathlib import Path

from conversion import convert, make_parser, read_json, run
from views import View

from bert4x.models.checkpoint import CheckpointError, open_checkpoint

RENAMES = [(r"^module/", "")]


def locate(source):
    """Where a tf-hub module keeps its variables; any other path as it is."""
    inner = Path(source) / "variables" / "variables"
    return str(inner) if inner.with_suffix(".index").exists() else source


def refuse_early_brightmart(source):
    """The first albert_zh releases project the token table alone, and are another model."""
    if any(name.endswith("word_embeddings_2") for name in source.names):
        raise CheckpointError(
            f"{source.source} is of the first albert_zh releases (word_embeddings_2), which compute another model than "
            "ALBERT; take the release whose name ends in _google"
        )


def main(argv=None):
    arguments = make_parser(__doc__).parse_args(argv)
    config = read_json(arguments)
    with open_checkpoint(locate(arguments.source)) as source:
        refuse_early_brightmart(source)
        convert(View(source, RENAMES), config, arguments, model="albert")


if __name__ == "__main__":
    run(main)
