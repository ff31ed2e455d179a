"""Named entities with a MEMM, whose training has no loop over tokens.

Data:    --data PATH: a folder with train.*, dev.* and test.*, or the common beginning of such files, or one file, which
         is cut 6 : 2 : 2. One `character tag` per line, an empty line after each sentence; tags O, B-PER, I-PER ...,
         or BMES. Without it: ../shared/data/ner/resume.* beside the repository (3,821 sentences from CVs to train, 477
         to test, 8 types), else 240 sentences made up for this repository, datasets/ner_sample.txt.
Command: python examples/task_sequence_labeling_ner_memm.py            (the tiny BERT in pretrained/bert_tiny_zh)
         python examples/task_sequence_labeling_ner_memm.py --smoke    (the same, short)
         python examples/task_sequence_labeling_ner_memm.py --checkpoint FOLDER_OF_A_CHINESE_BERT
Score:   micro-F1 of entities on the test, --smoke, seed 0: 0.878; the best tag of each token alone 0.819; a gazetteer
         of the training data 0.520; the most that length 100 allows 0.965.
Time:    --smoke 236 s, 227 s of CPU, on 2 busy cores.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from bert4x.backend import keras, runtime
from bert4x.layers import MaximumEntropyMarkovModel
from bert4x.models import build_transformer_model
from bert4x.optimizers import Adam, extend_with_piecewise_linear_lr
from bert4x.snippets import (
    BestWeights,
    DataGenerator,
    LearningRateLogger,
    Resume,
    ViterbiDecoder,
    entities_to_tags,
    find_splits,
    gazetteer,
    open,
    read_entities,
    sequence_padding,
    set_seed,
    tags_to_entities,
)
from bert4x.snippets.metrics import entity_score
from bert4x.tokenizers import Tokenizer

# ---- 1. Settings ----------------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent
TINY = HERE / "pretrained" / "bert_tiny_zh"  # 3 layers of width 192
SHARED = HERE.parents[1] / "shared" / "data" / "ner" / "resume"  # the files begin with it
SAMPLE = HERE / "datasets" / "ner_sample.txt"
TRANSITIONS = 0.01  # their learning rate: one that suits the encoder is too small for them
PASS_LINE = 0.5  # F1 that --smoke must reach on the shared data

parser = argparse.ArgumentParser(description="Find the named entities of a sentence.")
parser.add_argument("--config", help="configuration; default: the one in --checkpoint")
parser.add_argument("--checkpoint", default=TINY, help="directory, or a file with --config and --vocab (%(default)s)")
parser.add_argument("--vocab", help="vocabulary file; default: the one in --checkpoint")
parser.add_argument("--data", help="folder, beginning of file names, or file; see the head of this script")
parser.add_argument("--epochs", type=int, default=10, help="passes over the training data (%(default)s)")
parser.add_argument("--batch-size", type=int, default=32, help="sentences per optimizer step (%(default)s)")
parser.add_argument("--max-length", type=int, default=128, help="longest input, in tokens (%(default)s)")
parser.add_argument("--learning-rate", type=float, help="default: 1e-3 for the tiny model, 2e-5 for others")
parser.add_argument("--hidden-dim", type=int, help="rank of the transitions, for many labels; default: full")
parser.add_argument("--seed", type=int, default=0, help="seed of weights, dropout and data order (%(default)s)")
parser.add_argument("--limit", type=int, help="use only this many sentences of each split")
parser.add_argument("--output", default="checkpoints/ner_memm", help="folder for what is written (%(default)s)")
parser.add_argument("--resume", action="store_true", help="go on with the interrupted run in --output")
parser.add_argument("--smoke", action="store_true", help="2 epochs at length 100; fails below a score")
args = parser.parse_args()

started = time.perf_counter()
set_seed(args.seed)
if args.smoke:
    args.epochs, args.max_length = 2, 100
data = Path(args.data or (SHARED if SHARED.parent.is_dir() else SAMPLE))
learning_rate = args.learning_rate or (1e-3 if args.checkpoint == TINY else 2e-5)
output = Path(args.output)
output.mkdir(parents=True, exist_ok=True)

# ---- 2. Data --------------------------------------------------------------------------------------------------------


def read_splits(path):
    """Records for training, validation and test."""
    if not path.is_file():
        return [read_entities(file) for file in find_splits(path)]
    records = read_entities(path)
    first, second = len(records) * 6 // 10, len(records) * 8 // 10
    return [records[:first], records[first:second], records[second:]]


train, dev, test = (records[: args.limit] for records in read_splits(data))
types = sorted({kind for _, entities in train for *_, kind in entities})
(output / "types.json").write_text(json.dumps(types), encoding="utf-8")
print(f"{len(types)} types; {len(train):,} sentences to train, {len(dev):,} to validate, {len(test):,} to test")

tokenizer = Tokenizer(args.vocab or args.checkpoint, do_lower_case=True if args.vocab else None)


def encode(record):
    """Token ids, segment ids, tags (0 outside, 2k + 1 begins and 2k + 2 continues type k), ranges of characters."""
    ids, segments, spans = tokenizer.encode(record[0], maxlen=args.max_length, offsets=True)
    return ids, segments, entities_to_tags(record[1], spans, types), spans


def collate(records):
    """Records -> ([token ids, segment ids], tags), padded to one length, because each length is compiled anew."""
    ids, segments, tags = ([row[i] for row in map(encode, records)] for i in range(3))
    token_ids, segment_ids, tags = (sequence_padding(part, args.max_length) for part in (ids, segments, tags))
    return [token_ids, segment_ids], tags


# ---- 3. Model -------------------------------------------------------------------------------------------------------

bert = build_transformer_model(args.config or args.checkpoint, args.checkpoint)
memm = MaximumEntropyMarkovModel(lr_multiplier=TRANSITIONS / learning_rate, hidden_dim=args.hidden_dim)
scores = keras.layers.Dense(2 * len(types) + 1, kernel_initializer=bert.builder.initializer)(bert.output)
model = keras.Model(bert.inputs, memm(scores))

# ---- 4. Training ----------------------------------------------------------------------------------------------------


def predict(model, records):
    """The entities of each record on the best path (of scores and transitions, as a CRF), and of each tag alone."""
    emissions = model.predict(collate(records)[0], batch_size=128, verbose=0)
    decoder = ViterbiDecoder(runtime.to_numpy(memm.trans), starts=[0], ends=[0])  # [CLS] and [SEP] are no entities
    paths, alone = [], []
    for record, nodes in zip(records, emissions, strict=True):
        spans = encode(record)[3]
        paths.append(tags_to_entities(decoder.decode(nodes[: len(spans)]), spans, types))
        alone.append(tags_to_entities(nodes[: len(spans)].argmax(-1), spans, types))
    return paths, alone


def validate(model):
    """F1 of the entities on the validation data."""
    return entity_score([entities for _, entities in dev], predict(model, dev)[0]).f1


generator = DataGenerator(train, args.batch_size, collate=collate, seed=args.seed)
steps = max(len(generator), 50)  # a small set is passed over several times
schedule = {steps * args.epochs // 10: 1, steps * args.epochs: 0.1}  # linear warm-up, then linearly down
optimizer = extend_with_piecewise_linear_lr(Adam)(learning_rate, lr_schedule=schedule, global_clipnorm=1.0)
model.compile(optimizer, loss=memm.sparse_loss, metrics=[memm.sparse_accuracy])
best = BestWeights(output / "best.weights.h5", validate, restore=True)
resume = Resume(output / "run.npz", generator, tracked=[best], fresh=not args.resume)
callbacks = [LearningRateLogger(), best, resume]
model.fit(generator.forfit(), steps_per_epoch=steps, epochs=args.epochs, callbacks=callbacks)

# ---- 5. Evaluation --------------------------------------------------------------------------------------------------


def write_submission(records, answers, path):
    """One line of JSON per record, with the entities found."""
    with open(path, "w") as file:
        for (text, _), entities in zip(records, answers, strict=True):
            rows = [{"start": a, "end": b, "type": kind, "text": text[a:b]} for a, b, kind in entities]
            file.write(json.dumps({"text": text, "entities": rows}, ensure_ascii=False) + "\n")


gold, (paths, alone) = [entities for _, entities in test], predict(model, test)
write_submission(test, paths, output / "test_predictions.jsonl")
ceiling = entity_score(gold, [tags_to_entities(tags, spans, types) for *_, tags, spans in map(encode, test)])
result = {"metric": entity_score(gold, paths).f1, "argmax": entity_score(gold, alone).f1, "baseline": 0.0}
named = gazetteer(train, [text for text, _ in test])  # what to beat
result |= {"gazetteer": entity_score(gold, named).f1, "ceiling": ceiling.recall}
for (text, _), entities in zip(test[:4], paths, strict=False):
    print(f"  {text[:40]}  {' '.join(f'{text[a:b]}/{kind}' for a, b, kind in entities)}")
print(f"Micro-F1 of entities (start, end and type right) in the {len(test):,} sentences of the test:")
for name in ("metric", "argmax", "gazetteer", "ceiling"):
    print(f"  {name:12}{result[name]:.3f}")
print(json.dumps({"task": "ner_memm", **result, "seconds": round(time.perf_counter() - started, 1)}))
if args.smoke and data == SHARED and result["metric"] < PASS_LINE:
    sys.exit(f"The F1 must be at least {PASS_LINE}.")
