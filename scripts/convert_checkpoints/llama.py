"""LLaMA, Mistral, Qwen2 in HuggingFace naming: to TensorFlow, to another dtype, to other shards.

| model_type     | biases of q, k, v | head                                        |
| llama, mistral | no                | lm_head.weight, or tied (tie_word_embeddings) |
| qwen2          | yes               | the same                                    |

    python -m scripts.convert_checkpoints.llama Qwen2-0.5B/ out/ --dtype bfloat16 --max-shard-gb 2 --check
"""

from conversion import convert, make_parser, read_json, run

from bert4x.models.checkpoint import open_checkpoint


def main(argv=None):
    arguments = make_parser(__doc__, to="huggingface").parse_args(argv)
    config = read_json(arguments)
    with open_checkpoint(arguments.source) as source:
        convert(source, config, arguments, model="llama")


if __name__ == "__main__":
    run(main)
