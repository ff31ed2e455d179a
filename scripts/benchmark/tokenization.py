"""Times Tokenizer.encode_batch against bert4keras' tokenizer and the Rust `tokenizers` library.

    python scripts/benchmark/tokenization.py --data ../shared/data \\
        --bert4keras-python /path/to/venv/bin/python

The three take turns, one pass over the same texts each, so that a busy machine slows all of them alike; ratios
are those of one round, and their median is compared with the goal. bert4keras runs in its own process, with the
Python of an environment that has bert4keras==0.11.5, tf-keras, tensorflow and setuptools. (This file must not be
called tokenize.py: that would hide the standard module from every benchmark in this directory.)
"""

import argparse
import gc
import gzip
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOALS = {"bert4keras": 8.0, "rust": 3.0}


def main():
    """Prints reviews per second of each library, then the ratios."""
    options = parse_options()
    texts = read_texts(options.data / "sentiment" / "sentiment.train.tsv.gz", options.limit)
    vocab = options.data / "vocabs" / "bert_chinese_vocab.txt"
    if options.worker:
        return serve(bert4keras_pass(vocab, texts, options.maxlen))
    if not vocab.exists():
        return print(f"SKIPPED: no data at {options.data}; give --data")
    passes = contenders(vocab, texts, options)
    seconds = {name: [] for name in passes}
    for _ in range(options.rounds):
        for name, run in passes.items():
            seconds[name].append(run())
    report(seconds, len(texts))


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="shared data")
    parser.add_argument("--bert4keras-python", help="Python that has bert4keras; else skipped")
    parser.add_argument("--limit", type=int, default=16883, help="reviews per pass")
    parser.add_argument("--maxlen", type=int, default=256, help="tokens")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def read_texts(path, limit):
    if not path.exists():
        return []
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\n").rsplit("\t", 1)[0] for line in file][:limit]


def contenders(vocab, texts, options):
    """name -> function that makes one pass and returns its seconds."""
    passes = {"bert4x": bert4x_pass(vocab, texts, options.maxlen)}
    rust = rust_pass(vocab, texts, options.maxlen)
    if rust:
        passes["rust"] = rust
    if options.bert4keras_python:
        passes["bert4keras"] = start_worker(options)
    else:
        print("SKIPPED bert4keras: give --bert4keras-python")
    return passes


def timed(run):
    """The function that runs `run` once, without a garbage collection of what came before in its time."""
    def measure():
        gc.collect()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    return measure


def bert4x_pass(vocab, texts, maxlen):
    sys.path.insert(0, str(ROOT))
    from bert4x.tokenizers import Tokenizer

    tokenizer = Tokenizer(vocab, do_lower_case=True)
    run = timed(lambda: tokenizer.encode_batch(texts, maxlen=maxlen))
    print(f"bert4x, first pass with empty memos: {len(texts) / run():,.0f} reviews/s")
    return run


def rust_pass(vocab, texts, maxlen):
    try:
        from tokenizers import BertWordPieceTokenizer, __version__
    except ImportError:
        return print("SKIPPED rust: pip install tokenizers")
    print(f"rust: tokenizers {__version__}, encode_batch with its own threads, {os.cpu_count()} processors")
    tokenizer = BertWordPieceTokenizer(str(vocab), lowercase=True)
    tokenizer.enable_truncation(maxlen)
    tokenizer.enable_padding()
    return timed(lambda: tokenizer.encode_batch(texts))


def bert4keras_pass(vocab, texts, maxlen):
    import setuptools  # noqa: F401  (brings back distutils, which bert4keras imports)
    from bert4keras.tokenizers import Tokenizer

    tokenizer = Tokenizer(str(vocab), do_lower_case=True)
    return timed(lambda: [tokenizer.encode(text, maxlen=maxlen) for text in texts])


def serve(run):
    """The worker's loop: one pass per line of input, its seconds as the answer."""
    print("ready", flush=True)
    for _ in sys.stdin:
        print(run(), flush=True)


def start_worker(options):
    command = [options.bert4keras_python, __file__, "--worker", "--data", str(options.data),
               "--limit", str(options.limit), "--maxlen", str(options.maxlen)]
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
                              stderr=subprocess.DEVNULL, env=environment)
    if worker.stdout.readline().strip() != "ready":
        raise SystemExit(f"{options.bert4keras_python} cannot import bert4keras; see why there.")

    def measure():
        worker.stdin.write("go\n")
        worker.stdin.flush()
        return float(worker.stdout.readline())
    return measure


def report(seconds, count):
    for name, times in seconds.items():
        rate = count / statistics.median(times)
        print(f"{name:12s} {rate:10,.0f} reviews/s (median of {len(times)} passes)")
    for name, goal in GOALS.items():
        if name in seconds:
            pairs = zip(seconds[name], seconds["bert4x"], strict=True)
            ratios = sorted(theirs / ours for theirs, ours in pairs)
            shown = " ".join(f"{ratio:.1f}" for ratio in ratios)
            median = statistics.median(ratios)
            print(f"bert4x is {median:.1f} times as fast as {name} (goal {goal}; rounds {shown})")


if __name__ == "__main__":
    main()
