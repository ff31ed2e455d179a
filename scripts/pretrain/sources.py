"""The project's shared data -> a corpus of texts whose licence note there is permissive or share-alike.

    python scripts/pretrain/sources.py ../shared/data --output corpus/

Validation and test parts are left out, and so is every text that also occurs in one of them.
"""

import argparse
import functools
import gzip
import json
from pathlib import Path

# Name: (file, licence of its source, reader). What each holds is in the data's own README.
SOURCES = {
    "reviews": ("sentiment/sentiment.train.tsv.gz", "Apache-2.0", "column"),
    "encyclopaedia": ("corpus/wiki_sample.txt.gz", "CC BY-SA", "paragraphs"),
    "web": ("corpus/clue_small_sample.txt.gz", "Apache-2.0", "paragraphs"),
    "passages": ("mrc/cmrc2018.train.json.gz", "CC BY-SA 4.0", "contexts"),
    "questions": ("mrc/webqa.sample.jsonl.gz", "MIT", "passages"),
    "travel": ("dialogue/crosswoz.val.jsonl.gz", "Apache-2.0", "dialogue"),
    "chat": ("dialogue/kdconv.dev.jsonl.gz", "Apache-2.0", "dialogue"),
    "lccc": ("dialogue/lccc_toy.train.jsonl.gz", "MIT", "dialogue"),
    "stc": ("dialogue/stc_toy.train.jsonl.gz", "MIT", "dialogue"),
    "titles": ("classification/thucnews_titles.dev.tsv.gz", "MIT", "column"),
    "sentences": ("similarity/stsb.train.tsv.gz", "Apache-2.0", "pair"),
    "resumes": ("ner/resume.train.txt.gz", "MIT", "tagged"),
    "weibo": ("ner/weibo.train.txt.gz", "CC BY-SA 3.0", "tagged"),
    "ci": ("poems/song_ci_simplified.jsonl.gz", "MIT", "poem"),
    "couplets": ("poems/couplets.train.tsv.gz", "MIT", "couplet"),
}
# Texts of these evaluation parts are removed wherever they occur.
EVALUATION = {
    "sentiment/sentiment.valid.tsv.gz": "column",
    "sentiment/sentiment.test.tsv.gz": "column",
    "classification/thucnews_titles.test.tsv.gz": "column",
    "similarity/stsb.valid.tsv.gz": "pair",
    "similarity/stsb.test.tsv.gz": "pair",
    "mrc/cmrc2018.dev.json.gz": "contexts",
    "mrc/cmrc2018.trial.json.gz": "contexts",
    "ner/resume.dev.txt.gz": "tagged",
    "ner/resume.test.txt.gz": "tagged",
    "ner/weibo.dev.txt.gz": "tagged",
    "ner/weibo.test.txt.gz": "tagged",
    "poems/couplets.dev.tsv.gz": "couplet",
}


def column(text):
    """The first field of each line."""
    return [line.split("\t")[0] for line in text.splitlines()]


def pair(text):
    """The two sentences of each line, each a document."""
    return [field for line in text.splitlines() for field in line.split("\t")[:2]]


def couplet(text):
    """Both lines of a couplet."""
    return ["，".join(line.split("\t")[:2]) + "。" for line in text.splitlines()]


def paragraphs(text):
    """What lies between blank lines."""
    return text.split("\n\n")


def contexts(text):
    """The passages of a SQuAD-style file."""
    return [paragraph["context"] for item in json.loads(text)["data"] for paragraph in item["paragraphs"]]


def passages(text):
    """Each question with the passages that answer it: half of the file's, the other half is about other things."""
    return [passage["passage"] for line in text.splitlines() for passage in json.loads(line)["passages"]]


def dialogue(text):
    """One utterance a line."""
    return ["\n".join(json.loads(line)) for line in text.splitlines()]


def tagged(text):
    """The characters of a file with `character tag` lines."""
    return ["".join(line.split(" ")[0] for line in block.splitlines()) for block in text.split("\n\n")]


def poem(text):
    """The stanzas of a poem."""
    return ["\n".join(json.loads(line)["paragraphs"]) for line in text.splitlines()]


READERS = {f.__name__: f for f in (column, pair, couplet, paragraphs, contexts, passages, dialogue, tagged, poem)}


def read(folder, name, reader):
    """The texts of one file."""
    with gzip.open(Path(folder) / name, "rt", encoding="utf-8") as file:
        return [text.strip() for text in READERS[reader](file.read()) if text.strip()]


def write_corpus(folder, output, names=SOURCES):
    """Write one JSONL file a source; returns [(name, file, licence, documents, characters)]."""
    output.mkdir(parents=True, exist_ok=True)
    seen = set().union(*map(functools.partial(read, folder), EVALUATION, EVALUATION.values()))
    rows = []
    for name in names:
        path, licence, reader = SOURCES[name]
        texts = [text for text in dict.fromkeys(read(folder, path, reader)) if text not in seen]
        with open(output / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        rows.append((name, path, licence, len(texts), sum(map(len, texts))))
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder of the shared data")
    parser.add_argument("--output", default="corpus", help="folder to write (%(default)s)")
    args = parser.parse_args(argv)
    rows = write_corpus(args.data, Path(args.output))
    print("| corpus | from | licence | documents | characters |\n| --- | --- | --- | --- | --- |")
    for name, path, licence, documents, characters in rows:
        print(f"| {name} | `{path}` | {licence} | {documents:,} | {characters:,} |")
    print(f"| all | | | {sum(row[3] for row in rows):,} | {sum(row[4] for row in rows):,} |")


if __name__ == "__main__":
    main()
