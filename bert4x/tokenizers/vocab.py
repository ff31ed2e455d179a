"""Vocabulary files, and the directories that hold one together with a tokenizer's settings."""

import collections
import json
import os
import re

from bert4x.tokenizers.text import is_cjk, is_punctuation

VOCAB_FILE = "vocab.txt"
CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILE = "tokenizer.json"

# Only ASCII whitespace ends a token: the published Chinese vocabulary has U+2028 as a token (line 344).
_BLANKS = " \t\r\f\v"
_BLANK = re.compile(f"[{_BLANKS}]")
_SPECIAL_NAMES = {
    "pad_token": "token_pad",
    "unk_token": "token_unk",
    "mask_token": "token_mask",
    "cls_token": "token_start",
    "sep_token": "token_end",
}


def load_vocab(dict_path, encoding="utf-8", simplified=False, startswith=None, *, strict=True):
    """Reads a vocabulary file: one token per line, its id is the line number counted from 0.

    The token is the first field of the line, fields being separated by ASCII whitespace.

    Args:
        dict_path: path of the file.
        encoding: its encoding; a byte order mark at the very start is skipped.
        simplified: drop the tokens that tokenising Chinese text can never give (see `simplify_vocab`).
        startswith: tokens that come first in a simplified vocabulary, in this order.
        strict: if False, blank and duplicate lines are let pass: ids stay line numbers, that of a blank line
            has no token, and the last of equal lines counts, as in Google's reader.
    Returns: dict token -> id; if simplified, (dict token -> new id, list of the old ids to keep), the second
        being what `build_transformer_model(keep_tokens=...)` takes.
    Raises: ValueError with line numbers (counted from 1) for undecodable bytes, blank lines and duplicates.
    """
    lines = _read_lines(dict_path, encoding)
    tokens = [_first_field(line.strip(_BLANKS)) for line in lines]
    if strict:
        _check_lines(tokens, dict_path)
    token_dict = {token: index for index, token in enumerate(tokens) if token}
    return simplify_vocab(token_dict, startswith) if simplified else token_dict


def _first_field(token):
    return _BLANK.split(token, 1)[0]


def _read_lines(path, encoding):
    with open(path, "rb") as file:
        data = file.read()
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"A vocabulary must be text in {encoding}; line {line} of {os.fspath(path)} is not ({error}). "
            "Name the right encoding=, or repair the file."
        ) from error
    lines = text.removeprefix("\ufeff").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _check_lines(tokens, path):
    first_line, problems = {}, []
    for line, token in enumerate(tokens, start=1):
        if not token:
            problems.append(f"line {line} is blank")
        elif token in first_line:
            problems.append(f"line {line} repeats {token!r} of line {first_line[token]}")
        first_line.setdefault(token, line)
    if problems:
        shown = "; ".join(problems[:10]) + ("; ..." if len(problems) > 10 else "")
        raise ValueError(
            f"A vocabulary has one token per line, each once; in {os.fspath(path)} {shown} ({len(problems)} "
            "in all). Repair it without moving other lines, or accept it with load_vocab(path, strict=False)."
        )


def simplify_vocab(token_dict, startswith=None):
    """Keeps `startswith`, then every other token in the order of ids unless it is redundant.

    Redundant: longer than one character and, without its "##", containing a CJK or punctuation character.
    Such characters always stand alone after BERT's pipeline.

    Args:
        token_dict: token -> id.
        startswith: tokens that come first, in this order; all must be in the vocabulary.
    Returns: (dict token -> new id, list of the old ids in the new order).
    """
    tokens = list(startswith or [])
    missing = [token for token in tokens if token not in token_dict]
    if missing:
        raise ValueError(f"The tokens of startswith must be in the vocabulary; it lacks {missing}. Add them.")
    first = set(tokens)
    ordered = sorted(token_dict, key=token_dict.get)
    tokens += [token for token in ordered if token not in first and not _is_redundant(token)]
    return {token: index for index, token in enumerate(tokens)}, [token_dict[token] for token in tokens]


def _is_redundant(token):
    return len(token) > 1 and any(is_cjk(c) or is_punctuation(c) for c in token.removeprefix("##"))


def save_vocab(dict_path, token_dict, encoding="utf-8"):
    """Writes a vocabulary file that `load_vocab` reads back as the same dict.

    Args:
        dict_path: path of the file.
        token_dict: token -> id; the ids must be 0 ... V-1, since a file has no other place for them.
        encoding: encoding of the file.
    Raises: ValueError if the dict cannot be written as lines (nothing is written then).
    """
    tokens = sorted(token_dict, key=token_dict.get)
    for index, token in enumerate(tokens):
        if token_dict[token] != index:
            raise ValueError(
                f"Ids must be 0 ... {len(tokens) - 1}, each once; token {token!r} has {token_dict[token]} in "
                f"place of {index}. Renumber the dict, or fill the gap with an unused token."
            )
        if not token or "\n" in token or _first_field(token) != token:
            raise ValueError(f"A token must be one field of one line; got {token!r} (id {index}). Rename it.")
    with open(dict_path, "w", encoding=encoding, newline="\n") as file:
        file.writelines(f"{token}\n" for token in tokens)


def character_vocab(texts, *, limit=6000, min_count=2):
    """A vocabulary of characters for a model from scratch: the special tokens of BERT, then the commonest characters.

    Use it as Tokenizer(vocab, do_lower_case=True, pre_tokenize=list), which makes every character a word.

    Args:
        texts: iterable of strings; lower-cased here, blanks left out.
        limit: most characters.
        min_count: how often a character must occur.
    Returns: dict token -> id, the most frequent first; of equally frequent ones the first to occur.
    """
    counts = collections.Counter()
    for text in texts:
        counts.update("".join(text.lower().split()))
    characters = [character for character, count in counts.most_common(limit) if count >= min_count]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return {token: i for i, token in enumerate([*special, *characters])}


def load_wordpiece(path):
    """Reads what a tokenizer is built from: a vocabulary file, or a directory.

    A directory holds vocab.txt (or a tokenizer.json with a WordPiece model, which is all that transformers 5
    writes) and perhaps tokenizer_config.json. Where that exists but is silent on `do_lower_case`, True holds,
    as in transformers.

    Returns: (dict token -> id, dict of options of `Tokenizer`).
    """
    if not os.path.isdir(path):
        return load_vocab(path), {}
    vocab_path = os.path.join(path, VOCAB_FILE)
    if os.path.exists(vocab_path) or not os.path.exists(os.path.join(path, TOKENIZER_FILE)):
        return load_vocab(vocab_path), read_settings(path)
    return _tokenizer_json_vocab(os.path.join(path, TOKENIZER_FILE)), read_settings(path)


def _tokenizer_json_vocab(path):
    with open(path, encoding="utf-8") as file:
        model = json.load(file).get("model", {})
    if model.get("type") != "WordPiece":
        raise ValueError(
            f"Tokenizer reads WordPiece vocabularies; {path} holds a model of type {model.get('type')!r}. "
            "Use the tokenizer class of that type."
        )
    vocab = dict(model["vocab"])
    if "" in vocab:
        # What transformers makes of U+2028, a token of the Chinese vocabulary; "" is no line of a vocabulary file.
        vocab.setdefault("\u2028", vocab.pop(""))
    return vocab


def read_settings(directory):
    """Options of a tokenizer from the tokenizer_config.json of a directory ({} without one)."""
    path = os.path.join(directory, CONFIG_FILE)
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    if "bert4x" in config:
        return config["bert4x"]
    lower = config.get("do_lower_case", True)
    if config.get("strip_accents") not in (None, lower) or not config.get("tokenize_chinese_chars", True):
        raise ValueError(
            f"BERT's pipeline strips accents if it lower-cases, and isolates CJK; {path} says otherwise. "
            "Pass the path of the vocabulary file and do_lower_case= to do it BERT's way all the same."
        )
    names = {ours: config[theirs] for theirs, ours in _SPECIAL_NAMES.items() if config.get(theirs)}
    names = {ours: name["content"] if isinstance(name, dict) else name for ours, name in names.items()}
    return {"do_lower_case": lower, **names}


def write_settings(directory, settings, **shared):
    """Writes tokenizer_config.json: `shared` for transformers too, `settings` are ours, under "bert4x"."""
    os.makedirs(directory, exist_ok=True)
    names = {theirs: settings[ours] for theirs, ours in _SPECIAL_NAMES.items() if settings.get(ours)}
    with open(os.path.join(directory, CONFIG_FILE), "w", encoding="utf-8") as file:
        json.dump({**shared, **names, "bert4x": settings}, file, ensure_ascii=False, indent=2)
