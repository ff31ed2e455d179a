"""Corpus -> shards of records: cut into words, packed into rows, written in parallel; a second run goes on.

    python scripts/pretrain/prepare.py corpus/ --vocab vocab.txt --output shards/ --length 128

The last 2 % of the documents of every file become the split `valid`. A shard that exists is not written again; settings
are kept in prepare.json beside them, and other settings are an error.
"""

import argparse
import functools
import itertools
import json
import logging
from pathlib import Path

import corpus
from records import DOCUMENT, INSIDE, SENTENCE, WORD, pack_record, shard_name, write_shard
from tqdm import tqdm

from bert4x.snippets import parallel_apply_generator
from bert4x.tokenizers import Tokenizer

RESERVED = 3  # [CLS], [SEP], and one more [SEP] for objectives with two parts


def words_of_tokens(text):
    """Where words start without a segmenter: at no place, so that only "##" tells."""
    return None


def words_of_jieba(text):
    """The character positions at which jieba's words start."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    return set(itertools.accumulate(map(len, jieba.lcut(text)), initial=0))


SEGMENTERS = {"jieba": words_of_jieba, "none": words_of_tokens}


def tokenize_clause(tokenizer, text, segment, first):
    """(ids, marks) of one clause, whose first token has the mark `first`."""
    ids, _, spans = tokenizer.encode(text, offsets=True)
    ids, spans = ids[1:-1], spans[1:-1]
    starts = segment(text)
    if starts is None:
        marks = [INSIDE if token.startswith("##") else WORD for token in tokenizer.ids_to_tokens(ids)]
    else:  # a token without a place in the text (unknown, or changed by lower-casing) is a word of its own
        marks = [WORD if span is None or span[0] in starts else INSIDE for span in spans]
    return ids, [first, *marks[1:]]


def tokenize_document(tokenizer, text, segment):
    """The clauses of a document, [(ids, marks)]."""
    result, first = [], DOCUMENT
    for sentence in corpus.sentences(text):
        for clause in corpus.clauses(sentence):
            ids, marks = tokenize_clause(tokenizer, clause, segment, first)
            if ids:
                result.append((ids, marks))
                first = WORD
        first = SENTENCE if result else first
    return result


def pack(documents, room, separator):
    """Yield (ids, marks) of at most `room` tokens: clauses while they fit, [SEP] between documents."""
    ids, marks = [], []
    for clause_ids, clause_marks in itertools.chain.from_iterable(documents):
        between = bool(ids) and clause_marks[0] == DOCUMENT
        if len(ids) + between + len(clause_ids) > room and ids:
            yield ids, marks
            ids, marks, between = [], [], False
        ids, marks = ids + [separator] * between + clause_ids, marks + [WORD] * between + clause_marks
        while len(ids) > room:  # a clause longer than a row
            yield ids[:room], marks[:room]
            ids, marks = ids[room:], marks[room:]
    if ids:
        yield ids, marks


def write_one(task, vocab, length, segmenter):
    """Write one shard; returns (records, tokens)."""
    path, texts = task
    tokenizer, segment = _tokenizer(vocab), SEGMENTERS[segmenter]
    documents = (tokenize_document(tokenizer, text, segment) for text in texts)
    packed = list(pack(documents, length - RESERVED, tokenizer._token_end_id))
    write_shard(path, [pack_record(ids, marks) for ids, marks in packed])
    return len(packed), sum(len(ids) for ids, _ in packed)


@functools.cache
def _tokenizer(vocab):
    return Tokenizer(vocab, do_lower_case=True)


def plan(files, shards, held_out):
    """{(split, number, count): texts}: the documents of all files, dealt out to the shards in turn."""
    parts = [corpus.split_held_out(corpus.read_documents(path), held_out) for path in files]
    train, valid = ([text for part in parts for text in part[i]] for i in (0, 1))
    tasks = {("train", i, shards): train[i::shards] for i in range(shards)}
    return tasks | ({("valid", 0, 1): valid} if valid else {})


def keep_settings(folder, settings):
    """Write the settings beside the shards.

    Raises: ValueError if the shards there were made with others.
    """
    path = folder / "prepare.json"
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old != settings:
            raise ValueError(f"{folder} holds shards made with {old}; now asked for {settings}. Use another folder.")
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def prepare(paths, vocab, output, *, length=128, shards=8, segmenter="jieba", held_out=0.02, workers=2):
    """Write all shards that are not there yet; returns (records, tokens) written now."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    files = corpus.find_files(paths)
    sizes = {file.name: file.stat().st_size for file in files}
    settings = {"length": length, "shards": shards, "segmenter": segmenter, "held_out": held_out, "files": sizes}
    keep_settings(output, settings | {"vocab": Path(vocab).read_text(encoding="utf-8").count("\n")})
    tasks = [(output / shard_name(*key), texts) for key, texts in plan(files, shards, held_out).items()]
    tasks = [task for task in tasks if not task[0].exists()]
    work = functools.partial(write_one, vocab=str(vocab), length=length, segmenter=segmenter)
    # "spawn": a fork of a process that runs JAX, which starts threads, may hang.
    results = parallel_apply_generator(
        work, tasks, workers, 2 * workers, random_seeds=False, start_method="spawn"
    )
    counts = [count for _, count in tqdm(results, total=len(tasks), unit="shard", desc=str(output))]
    return tuple(map(sum, zip(*counts, strict=True))) if counts else (0, 0)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", nargs="+", help="text files, or folders of them")
    parser.add_argument("--vocab", required=True, help="vocabulary file")
    parser.add_argument("--output", default="shards", help="folder for the shards (%(default)s)")
    parser.add_argument("--length", type=int, default=128, help="longest row, in tokens (%(default)s)")
    parser.add_argument("--shards", type=int, default=8, help="number of training shards (%(default)s)")
    parser.add_argument("--segmenter", choices=SEGMENTERS, default="jieba", help="what a word is (%(default)s)")
    parser.add_argument("--held-out", type=float, default=0.02, help="share of each file's documents (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    args = vars(parser.parse_args(argv))
    records, tokens = prepare(args.pop("corpus"), args.pop("vocab"), args.pop("output"), **args)
    print(f"{records:,} records with {tokens:,} tokens written")


if __name__ == "__main__":
    main()
