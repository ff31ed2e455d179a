"""Times Tokenizer.encode_batch against bert4keras' tokenizer and the Rust `tokenizers` library.

    python scripts/benchmark/tokenization.py --data ../shared/data \\
        --bert4keras-python /path/to/venv/bin/python

The three take turns, one pass over the same texts each, so that a busy machine slows all of them alike; ratios
are those of one round, and their median is compared with the goal. On a machine that others load heavily, the ratio of
processor time is the one to trust (Rust's is the sum of its threads). bert4keras runs in its own process, with the
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
    """name -> function that makes one pass and returns its (seconds, processor seconds)."""
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
    """The function that runs `run` once and returns its (seconds, processor seconds), garbage collected before."""
    def measure():
        gc.collect()
        start, start_cpu = time.perf_counter(), time.process_time()
        run()
        return time.perf_counter() - start, time.process_time() - start_cpu
    return measure


def bert4x_pass(vocab, texts, maxlen):
    sys.path.insert(0, str(ROOT))
    from bert4x.tokenizers import Tokenizer

    tokenizer = Tokenizer(vocab, do_lower_case=True)
    run = timed(lambda: tokenizer.encode_batch(texts, maxlen=maxlen))
    print(f"bert4x, first pass with empty memos: {len(texts) / run()[0]:,.0f} reviews/s")
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
        print(*run(), flush=True)


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
        return tuple(map(float, worker.stdout.readline().split()))
    return measure


def report(seconds, count):
    for name, times in seconds.items():
        rate, cpu_rate = (count / statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:12s} {rate:10,.0f} reviews/s, {cpu_rate:10,.0f} per processor second (median of {len(times)})")
    for name, goal in GOALS.items():
        if name in seconds:
            ratios, cpu_ratios = (ratios_of(seconds[name], seconds["bert4x"], kind) for kind in (0, 1))
            shown = " ".join(f"{ratio:.1f}" for ratio in ratios)
            print(f"bert4x is {statistics.median(ratios):.1f} times as fast as {name} (goal {goal}; rounds {shown}), "
                  f"by processor time {statistics.median(cpu_ratios):.1f} times")


def ratios_of(theirs, ours, kind):
    """Their time over ours in each round, in ascending order; kind 0 is the clock's, 1 the processor's."""
    return sorted(a[kind] / b[kind] for a, b in zip(theirs, ours, strict=True))


if __name__ == "__main__":
    main()
