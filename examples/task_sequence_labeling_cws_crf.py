"""Chinese word segmentation with a CRF: a tag for each character, and the best path through them.

Data:    --data PATH: a folder with *train*, perhaps *dev*, and *test*, or the common beginning of such files, or one
         file, which is cut 6 : 2 : 2. A sentence per line, its words separated by blanks. Without dev a tenth of train
         is set aside. Without --data: ../shared/data/cws/msr_* beside the repository (6,000 lines to train, a tenth of
         the official ones, so no score of the bakeoff), else 240 made-up sentences, datasets/cws_sample.utf8.
Command: python examples/task_sequence_labeling_cws_crf.py            (the tiny BERT in pretrained/bert_tiny_zh)
         python examples/task_sequence_labeling_cws_crf.py --smoke    (the same, short)
         python examples/task_sequence_labeling_cws_crf.py --checkpoint FOLDER_OF_A_CHINESE_BERT
Score:   word F1 on the first 1,000 lines of the test, --smoke, seed 0: 0.870; the best tag of each token alone 0.815;
         longest match with the words of the training data 0.841; each character a word 0.323.
Time:    --smoke 257 s, 229 s of CPU, on 2 busy cores.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from bert4x.backend import keras, runtime
from bert4x.layers import ConditionalRandomField
from bert4x.models import build_transformer_model
from bert4x.optimizers import Adam, extend_with_piecewise_linear_lr
from bert4x.snippets import (
    BestWeights,
    DataGenerator,
    LearningRateLogger,
    Resume,
    ViterbiDecoder,
    find_splits,
    longest_words,
    open,
    sequence_padding,
    set_seed,
    tags_to_words,
    text_segmentate,
    words_to_tags,
)
from bert4x.snippets.metrics import segmentation_score, vocabulary_recalls
from bert4x.tokenizers import Tokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent
TINY = HERE / "pretrained" / "bert_tiny_zh"  # 3 layers of width 192
SHARED = HERE.parents[1] / "shared" / "data" / "cws" / "msr_"  # the files begin with it
SAMPLE = HERE / "datasets" / "cws_sample.utf8"
TRANSITIONS = 0.01  # their learning rate: one that suits the encoder is too small for them
PASS_LINE = 0.65  # F1 that --smoke must reach on the shared data

parser = argparse.ArgumentParser(description="Cut sentences into words.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", default=TINY, help="directory, or a file with --config and --vocab (%(default)s)")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--data", help="folder, beginning of file names, or file; see the head of this script")
parser.add_argument("--epochs", type=int, default=10, help="passes over the training data (%(default)s)")
parser.add_argument("--batch-size", type=int, default=32, help="pieces of sentences per optimizer step (%(default)s)")
parser.add_argument("--max-length", type=int, default=64, help="longest input, in tokens (%(default)s)")
parser.add_argument("--learning-rate", type=float, help="default: 1e-3 for the tiny model, 2e-5 for others")
parser.add_argument("--seed", type=int, default=0, help="seed of weights, dropout and data order (%(default)s)")
parser.add_argument("--limit", type=int, help="use only this many sentences of each split")
parser.add_argument("--output", default="checkpoints/cws_crf", help="folder for what is written (%(default)s)")
parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --output")
parser.add_argument("--smoke", action="store_true", help="400 steps, 1,000 sentences to test; fails below a score")
args = parser.parse_args()

started = time.perf_counter()
args.epochs = 2 if args.smoke else args.epochs
set_seed(args.seed)
data = Path(args.data or (SHARED if SHARED.parent.is_dir() else SAMPLE))
learning_rate = args.learning_rate or (1e-3 if args.checkpoint == TINY else 2e-5)
(output := Path(args.output)).mkdir(parents=True, exist_ok=True)

# ---- 2. Data --------------------------------------------------------------------------------------------------------


def read_records(path):
    """Sentences as lists of words, of a file that may be zipped."""
    with open(path) as file:
        return [line.split() for line in file if line.strip()]


def read_splits(path):
    """Records for training, validation and test."""
    if path.is_file():
        records = read_records(path)
        first, second = len(records) * 6 // 10, len(records) * 8 // 10
        return records[:first], records[first:second], records[second:]
    files = find_splits(path, ("train|.*train_part", "dev", "test|.*test_gold"))
    train, dev, test = (read_records(file) if file else [] for file in files)
    if not dev:
        np.random.default_rng(0).shuffle(train)
        train, dev = train[: len(train) * 9 // 10], train[len(train) * 9 // 10 :]
    return train, dev, test


train, dev, test = (records[: args.limit] for records in read_splits(data))
dev, test = (dev[:200], test[:1000]) if args.smoke else (dev, test)
print(f"{len(train):,} sentences to train, {len(dev):,} to validate, {len(test):,} to test")

tokenizer = Tokenizer(args.vocab or args.checkpoint, do_lower_case=True if args.vocab else None)


def pieces(words):
    """The words of a sentence in lists that fit; the text is cut after punctuation, or where the room ends."""
    room, rest, parts = args.max_length - 2, list(words), []
    for part in text_segmentate("".join(words), room, "。！？；，：、"):
        for left in [room] * (len(part) // room) + [len(part) % room]:
            parts.append([])
            while left:
                word, rest[0] = rest[0][:left], rest[0][left:]  # the places of the cuts must not tell where words end
                parts[-1].append(word)
                left -= len(word)
                rest = rest if rest[0] else rest[1:]
    return [part for part in parts if part]


def encode(words):
    """Token ids, segment ids, tags (0 single, 1 begin, 2 middle, 3 end), ranges of characters."""
    ids, segments, spans = tokenizer.encode("".join(words), maxlen=args.max_length, offsets=True)
    return ids, segments, words_to_tags(words, spans), spans


def collate(rows):
    """Encoded pieces -> ([token ids, segment ids], tags), padded to one length: each length is compiled anew."""
    *inputs, tags = (sequence_padding([row[i] for row in rows], args.max_length) for i in range(3))
    return inputs, tags


# ---- 3. Model -------------------------------------------------------------------------------------------------------

bert = build_transformer_model(args.config or args.checkpoint, args.checkpoint)
crf = ConditionalRandomField(lr_multiplier=TRANSITIONS / learning_rate)
model = keras.Model(bert.inputs, crf(keras.layers.Dense(4, kernel_initializer=bert.builder.initializer)(bert.output)))

# ---- 4. Training ----------------------------------------------------------------------------------------------------


def predict(model, sentences):
    """The words of each sentence on the best path, and those of the best tag of each token alone."""
    parts = [pieces(words) for words in sentences]
    rows = [encode(piece) for part in parts for piece in part]
    given = iter(zip(model.predict(collate(rows)[0], batch_size=128, verbose=0), rows, strict=True))
    decoder = ViterbiDecoder(runtime.to_numpy(crf.trans), starts=[0], ends=[0])  # the tags of [CLS] and [SEP]
    found = [[] for _ in parts], [[] for _ in parts]
    for number, piece in ((i, piece) for i, part in enumerate(parts) for piece in part):
        nodes, (*_, spans) = next(given)
        for words, tags in zip(found, (decoder.decode(nodes[: len(spans)]), nodes.argmax(-1)), strict=True):
            words[number].extend(tags_to_words("".join(piece), tags[: len(spans)], spans))
    return found


rows = [encode(piece) for words in train for piece in pieces(words)]
generator = DataGenerator(rows, args.batch_size, collate=collate, seed=args.seed)
steps = 200 if args.smoke else max(len(generator), 50)  # a small set is passed over several times
schedule = {steps * args.epochs // 10: 1, steps * args.epochs: 0.1}  # linear warm-up, then linearly down
optimizer = extend_with_piecewise_linear_lr(Adam)(learning_rate, lr_schedule=schedule, global_clipnorm=1.0)
model.compile(optimizer, loss=crf.sparse_loss, metrics=[crf.sparse_accuracy])
best = BestWeights(output / "best.weights.h5", lambda m: segmentation_score(dev, predict(m, dev)[0]).f1, restore=True)
resume = Resume(output / "run.npz", generator, tracked=[best], fresh=not args.resume)
callbacks = [LearningRateLogger(), best, resume]
model.fit(generator.forfit(), steps_per_epoch=steps, epochs=args.epochs, callbacks=callbacks)

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------


def write_submission(answers, path):
    """A line per sentence, two blanks between words, as the bakeoff wants it."""
    path.write_text("\n".join(map("  ".join, answers)) + "\n", encoding="utf-8")


vocabulary, (paths, alone) = {word for words in train for word in words}, predict(model, test)
write_submission(paths, output / "test_predictions.utf8")
oracle = [[w for p in pieces(words) for w in tags_to_words("".join(p), *encode(p)[2:])] for words in test]
answers = {"metric": paths, "argmax": alone}
answers |= {"longest_match": [longest_words("".join(words), vocabulary, 10) for words in test]}
answers |= {"baseline": [list("".join(words)) for words in test], "ceiling": oracle}  # each character is a word
result = {name: segmentation_score(test, words).f1 for name, words in answers.items()}
print(f"F1 of words in the {len(test):,} sentences of the test, recalls of known and unknown words:")
rows = (result | vocabulary_recalls(test, paths, vocabulary)).items()
print("\n".join(f"  {name:14}{number:.3f}" for name, number in rows))
print("Transitions from (rows) to single, begin, middle, end:", trans := runtime.to_numpy(crf.trans), sep="\n")
right = bool(trans[0, :2].min() > trans[0, 2:].max() and trans[1, 2:].min() > trans[1, :2].max())
seconds = round(time.perf_counter() - started, 1)
print(json.dumps({"task": "cws_crf", **result, "transitions_right": right, "seconds": seconds}))
if args.smoke and data == SHARED and not (right and result["metric"] >= max(PASS_LINE, result["argmax"])):
    sys.exit(f"The F1 must be at least {PASS_LINE}, above that without transitions, and the transitions as words are.")
