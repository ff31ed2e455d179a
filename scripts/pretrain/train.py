"""Pretrains a model on shards; killed at any moment, the same command goes on from the last saved state.

    python scripts/pretrain/train.py shards/ --config config.json --vocab vocab.txt --output run/ --steps 20000

Steps are optimizer updates, everywhere. The learning rate rises over --warmup steps, stays, and falls to zero over the
last --decay steps. `--finish N` lets a run of any length end: from where it is, zero is reached in N more steps.
In the output folder: state.npz (to go on), checkpoint/ (Google's names and safetensors), curves.csv, curves.png, and
tensorboard/ if asked for.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":  # not where it is imported: the kernels then differ from those of a child process
    # TensorFlow leaves oneDNN off on processors without AVX-512; a step took 0.83 of the time with it on AVX2.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import curves
import network
import numpy as np
import objectives
from records import Shards, find_shards

from bert4x import optimizers
from bert4x.backend import keras, runtime
from bert4x.snippets import DataGenerator, LearningRateLogger, Resume, set_seed
from bert4x.tokenizers import Tokenizer

NOT_DECAYED = ["Norm", "bias", "beta"]


class Rows(DataGenerator):
    """Batches of an objective; order and masks are functions of the seed and the number of the pass alone."""

    def __init__(self, records, batch_size, objective, *, seed=0):
        super().__init__(records, batch_size, seed=seed, drop_remainder=True)
        self.objective = objective

    def __iter__(self, random=False):
        # `forfit` gives the generator that shuffles the pass; the masks go on from it.
        rng = random or np.random.default_rng(self.seed)
        records = []
        for _, record in self.sample(random):
            records.append(record)
            if len(records) == self.batch_size:
                yield self.objective.batch(records, rng)
                records = []


def make_objective(name, length, tokenizer, rate, single_tokens=0.0):
    """The objective of this name."""
    if name in ("mlm", "mlm+sop"):
        options = {"single_tokens": single_tokens, "sentence_order": name == "mlm+sop"}
        return objectives.MaskedWords(length, tokenizer, rate=rate, **options)
    if single_tokens:
        raise ValueError(f"--single-tokens belongs to mlm and mlm+sop; got it with {name}. Leave it out.")
    if name == "gpt":
        return objectives.NextToken(length, tokenizer)
    return objectives.SourceToTarget(length, tokenizer, rate=rate)


def make_schedule(steps, warmup, decay):
    """Points of the learning rate's factor: up, level, down."""
    points = {0: 0.0, warmup: 1.0} if warmup else {0: 1.0}
    if decay:
        points |= {max(steps - decay, warmup): 1.0, steps: 0.0}
    return points


def make_optimizer(name, learning_rate, schedule, weight_decay, accumulation):
    """AdamW or LAMB with the schedule, the gradient's norm clipped at 1."""
    corrected = name == "adamw"  # LAMB as in BERT, without bias correction
    made = optimizers.extend_with_weight_decay(optimizers.Adam)
    if name == "lamb":
        made = optimizers.extend_with_layer_adaptation(made)
    made = optimizers.extend_with_piecewise_linear_lr(made)
    options = {"weight_decay_rate": weight_decay, "exclude_from_weight_decay": NOT_DECAYED, "lr_schedule": schedule}
    if name == "lamb":
        options["exclude_from_layer_adaptation"] = NOT_DECAYED
    if accumulation > 1:
        made = optimizers.extend_with_gradient_accumulation(made)
        options["grad_accum_steps"] = accumulation
    return made(learning_rate, epsilon=1e-6, bias_correction=corrected, global_clipnorm=1.0, **options)


def xla(asked=False):
    """`jit_compile` of a training step: as asked; on JAX always, where the other way is one operation at a time."""
    return asked or keras.backend.backend() == "jax"


def compile_model(model, optimizer, *, order_weight=1.0, jit=False, steps_per_execution=1):
    """Cross-entropy as a mean over the tokens that have a weight, the same for the order of sentences."""
    losses = [
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=name == "tokens", reduction="mean_with_sample_weight", name=name
        )
        for name in model.output_names
    ]
    metrics = [["accuracy"] for _ in losses]
    model.compile(
        optimizer, losses, loss_weights=[1.0, order_weight][: len(losses)], jit_compile=xla(jit),
        weighted_metrics=metrics if len(metrics) > 1 else metrics[0], steps_per_execution=steps_per_execution,
    )


class Checkpoints(keras.callbacks.Callback):
    """Writes the weights for `build_transformer_model` after every epoch: checkpoint/ in the run's folder."""

    def __init__(self, builder, tokenizer, config, folder):
        super().__init__()
        self.builder, self.folder = builder, folder
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
        text = json.dumps(config, indent=2) + "\n"
        (folder / ("config.json" if "model_type" in config else "bert_config.json")).write_text(text, encoding="utf-8")

    def on_epoch_end(self, epoch, logs=None):
        """Write both formats."""
        for name in ("bert_model.ckpt", "model.safetensors"):
            self.builder.save_weights_as_checkpoint(str(self.folder / name))


def held_out(records, objective, batch_size, limit):
    """Fixed arrays (x, y, w) of whole batches of held-out records; None if there are too few."""
    count = min(len(records), limit) // batch_size * batch_size
    if not count:
        return None
    return objective.batch([records[i] for i in range(count)], np.random.default_rng(0))


def settled(args, output):
    """The arguments, with the length of the run that an earlier `--finish` fixed, or this one does."""
    path = output / "finish.json"
    if args.finish:
        rows = json.loads(str(np.load(output / "state.npz")["facts"]))["tracked"][0]
        now = rows[-1]["step"]
        path.write_text(json.dumps({"steps": now + args.finish, "decay": args.finish}), encoding="utf-8")
    fixed = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return argparse.Namespace(**{**vars(args), **fixed})


def train(args, callbacks=()):
    """Run, or go on, with further callbacks; returns Keras' history."""
    set_seed(args.seed)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    args = settled(args, output)
    if args.mixed_precision:
        keras.mixed_precision.set_global_policy(f"mixed_{args.mixed_precision}")
    tokenizer = Tokenizer(args.vocab, do_lower_case=True)
    config = json.loads(Path(args.config).read_text(encoding="utf-8")) | {"vocab_size": tokenizer._vocab_size}
    length = json.loads((Path(args.shards) / "prepare.json").read_text(encoding="utf-8"))["length"]
    keep_settings(args, output, length)
    objective = make_objective(args.objective, length, tokenizer, args.mask_rate, args.single_tokens)
    generator = Rows(Shards(find_shards(args.shards, "train")), args.batch_size, objective, seed=args.seed)
    valid = held_out(Shards(find_shards(args.shards, "valid")), objective, args.batch_size, args.validation_records)
    schedule = make_schedule(args.steps, args.warmup, args.decay)
    with runtime.data_parallel(args.data_parallel):  # the optimizer too: its counter must be one of all devices
        optimizer = make_optimizer(args.optimizer, args.learning_rate, schedule, args.weight_decay, args.accumulation)
        start = {"checkpoint": args.checkpoint, "local_heads": args.local_heads}
        model, builder = network.build(config, objective, dropout_rate=args.dropout, **start)
        options = {"jit": args.jit, "steps_per_execution": args.steps_per_execution}
        compile_model(model, optimizer, order_weight=args.order_weight, **options)
    checkpoints = Checkpoints(builder, tokenizer, config, output / "checkpoint")
    callbacks = [*callbacks, *make_callbacks(args, output, generator, checkpoints)]
    print(f"{model.count_params():,} weights, {len(generator.data):,} records, {args.steps:,} steps", flush=True)
    return model.fit(
        generator.forfit(), steps_per_epoch=args.save_every * args.accumulation, callbacks=callbacks,
        epochs=-(-args.steps // args.save_every), verbose=args.verbose,
        validation_data=valid, validation_batch_size=args.batch_size,
    )


def keep_settings(args, output, length):
    """Write the settings and the command of the run, for the card of what comes of it."""
    given = {name: value for name, value in vars(args).items() if value not in (None, False)}
    words = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in given.items() if name not in ("shards", "finish", "verbose")
    ]
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    settings |= {"length": length, "command": " ".join(["python scripts/pretrain/train.py", str(args.shards), *words])}
    (output / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def make_callbacks(args, output, generator, checkpoints):
    """All callbacks, the one that makes the run resumable last."""
    table = curves.Curves(output, args.batch_size * generator.objective.length)
    board = [curves.tensorboard(output / "tensorboard")] if args.tensorboard else []
    resume = Resume(output / "state.npz", generator, tracked=[table], keep=True)
    return [LearningRateLogger(key="rate"), table, *board, checkpoints, resume]


def make_parser():
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("shards", help="folder that prepare.py wrote")
    add("--config", required=True, help="configuration of the model; vocab_size is taken from the vocabulary")
    add("--vocab", required=True, help="vocabulary file")
    add("--checkpoint", help="weights to start from, to go on pretraining on texts of your own; default: random ones")
    add("--output", required=True, help="folder of the run")
    add("--objective", choices=["mlm", "mlm+sop", "gpt", "unilm"], default="mlm", help="(%(default)s)")
    add("--order-weight", type=float, default=1.0, help="of the loss of sentence order in mlm+sop (%(default)s)")
    add("--steps", type=int, default=20000, help="updates (%(default)s)")
    add("--finish", type=int, help="end the run in OUTPUT this many updates from where it is")
    add("--warmup", type=int, default=500, help="updates (%(default)s)")
    add("--decay", type=int, default=0, help="updates at the end in which the rate falls to 0 (%(default)s)")
    add("--batch-size", type=int, default=32, help="rows per batch (%(default)s)")
    add("--accumulation", type=int, default=1, help="batches per update (%(default)s)")
    add("--optimizer", choices=["adamw", "lamb"], default="adamw", help="(%(default)s)")
    add("--learning-rate", type=float, default=1e-3, help="(%(default)s)")
    add("--weight-decay", type=float, default=0.01, help="(%(default)s)")
    add("--dropout", type=float, default=0.0, help="(%(default)s)")
    add("--mask-rate", type=float, default=0.15, help="share of the tokens that are predicted (%(default)s)")
    add("--single-tokens", type=float, default=0.0, help="share of rows whose tokens are masked one by one, in mlm")
    add("--local-heads", action="store_true", help="start the first layer's heads at the neighbouring tokens")
    add("--mixed-precision", choices=["bfloat16", "float16"], help="default: float32")
    add("--jit", action="store_true", help="compile with XLA on TensorFlow; JAX always does")
    add("--steps-per-execution", type=int, default=1, help="batches per call of the step, 1 on torch (%(default)s)")
    add("--data-parallel", action="store_true", help="divide each batch among all devices")
    add("--save-every", type=int, default=200, help="updates between two states, validation included (%(default)s)")
    add("--validation-records", type=int, default=512, help="held-out records at most (%(default)s)")
    add("--tensorboard", action="store_true", help="write scalars for TensorBoard (needs TensorFlow)")
    add("--verbose", type=int, default=2, help="as in fit (%(default)s)")
    add("--seed", type=int, default=0, help="of weights, order and masks (%(default)s)")
    return parser


if __name__ == "__main__":
    train(make_parser().parse_args())
