"""Text files -> documents -> sentences -> clauses."""

import gzip
import json
import re
from pathlib import Path

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")

_SENTENCE = re.compile(r"[^。！？!?\n]*(?:[。！？!?]+[”’』」）)\"']*|\n|$)")
_CLAUSE = re.compile(r"[^，,；;：:]*(?:[，,；;：:]+|$)")


def find_files(paths):
    """Text files among the given paths; folders are searched, sorted by name.

    Raises: FileNotFoundError where there is nothing to read.
    """
    files = []
    for path in map(Path, paths):
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [file for file in inside if file.name.endswith(SUFFIXES)]
        if not path.exists() or not files:
            raise FileNotFoundError(f"{path} must be, or hold, files that end in {', '.join(SUFFIXES)}.")
    return files


def read_documents(path):
    """The documents of a file, a list of str: those between blank lines, or the `text` of each line of JSON."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        if ".jsonl" in path.name:
            return [json.loads(line)["text"] for line in file if line.strip()]
        return [document.strip() for document in re.split(r"\n\s*\n", file.read()) if document.strip()]


def split_held_out(documents, share):
    """(training, held out): the last `share` of a file's documents are held out, at least one of two or more."""
    count = max(1, round(len(documents) * share)) if share and len(documents) > 1 else 0
    return documents[: len(documents) - count], documents[len(documents) - count :]


def sentences(text):
    """The sentences of a text with what ends them: a full stop, question or exclamation mark, or the line's end."""
    return [found.strip() for found in _SENTENCE.findall(text) if found.strip()]


def clauses(sentence):
    """The parts of a sentence up to each comma, colon or semicolon."""
    return [found for found in _CLAUSE.findall(sentence) if found]
