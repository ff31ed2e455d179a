"""Where a checkpoint lies in a directory, and what to say when none is there."""

import difflib
import os
import re

from bert4x.models.tensor_file import CheckpointError

# in order of preference; TensorFlow checkpoints come after these
HUGGINGFACE_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def has_checkpoint(directory):
    """Whether a directory holds a file that makes it a checkpoint for `open_checkpoint`."""
    known = (*HUGGINGFACE_FILES, "checkpoint")
    return any(name in known or name.endswith(".index") for name in os.listdir(directory))


def find_in_directory(directory):
    """Path of the checkpoint that a directory holds."""
    for name in HUGGINGFACE_FILES:
        if os.path.exists(os.path.join(directory, name)):
            return os.path.join(directory, name)
    if os.path.exists(os.path.join(directory, "checkpoint")):
        return _from_state_file(directory)
    names = sorted(name for name in os.listdir(directory) if name.endswith(".index"))
    if len(names) > 1:
        raise CheckpointError(f"{directory} holds several checkpoints; name one: {', '.join(names)}")
    if not names:
        raise FileNotFoundError(f"no checkpoint in {directory}, which holds {_listing(directory)}")
    return os.path.join(directory, names[0].removesuffix(".index"))


def _from_state_file(directory):
    """Prefix that TensorFlow's `checkpoint` text file calls the latest."""
    path = os.path.join(directory, "checkpoint")
    with open(path, encoding="utf-8", errors="replace") as file:
        found = re.search(r'^model_checkpoint_path:\s*"(.+)"', file.read(), re.MULTILINE)
    if not found:
        raise CheckpointError(f"{path} names no model_checkpoint_path; give the prefix itself")
    prefix = os.path.join(directory, found[1])
    if os.path.exists(f"{prefix}.index"):
        return prefix
    # an absolute path written on another machine means the file of that name in this directory
    return os.path.join(directory, os.path.basename(found[1]))


def absent_message(path):
    """Message for a path where nothing is, with what lies near it."""
    directory, name = os.path.split(path)
    if not os.path.isdir(directory or "."):
        return f"no checkpoint at {path}: the directory {directory} does not exist"
    near = difflib.get_close_matches(name, os.listdir(directory or "."), n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"no checkpoint at {path}; {hint}{directory or '.'} holds {_listing(directory)}"


def _listing(directory, most=20):
    names = sorted(os.listdir(directory or "."))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"
