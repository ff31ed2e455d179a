"""Byte-pair encoding: the tokenizer of GPT2, LLaMA and Qwen, through the `tokenizers` library."""

import json
import os
import re
import unicodedata

from bert4x.tokenizers.base import TokenizerBase
from bert4x.tokenizers.rows import pack
from bert4x.tokenizers.vocab import CONFIG_FILE, TOKENIZER_FILE

VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
END_OF_TEXT = "<|endoftext|>"
_SAVED = ("token_start", "token_end", "token_pad", "token_unk", "token_mask", "token_translate")
# Classes of transformers whose vocab.json and merges.txt are cut into words by GPT2's rule.
_GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")
# Lone surrogates, as broken JSON has them, are no text for the library: they count as U+FFFD.
_SURROGATES = re.compile("[\ud800-\udfff]")


class BpeTokenizer(TokenizerBase):
    """Byte-pair encoding from the files of a HuggingFace model: ids equal to those of transformers.

    A text is cut into words and these into bytes, which are merged in the order that the file gives; so no text is
    unknown. Special tokens of the file are kept whole where they stand in a text, such as <|im_start|>.

    Args:
        path: a tokenizer.json; or a vocab.json, and then the merges are the second argument (words are cut by GPT2's
            rule, and <|endoftext|> is special); or a directory with these, whose tokenizer_config.json counts too.
        merges_path: the merges.txt of a vocab.json, else None.
        options: token_start, token_end, token_pad, token_unk, token_mask, pre_tokenize, token_translate as in the other
            tokenizers. What is not given is as the files say: GPT2 and Qwen have no start and end token, LLaMA has a
            start token.
    Attributes: end_of_text: token with which a model ends what it writes (eos_token of the configuration), or None; it
        need not be token_end, which is put behind each text.
    Raises: ImportError with the pip line if tokenizers is not installed; ValueError for files of another kind.
    """

    def __init__(self, path, merges_path=None, **options):
        directory = path if os.path.isdir(path) else None
        self._config = _read_config(directory)
        bpe = _load(path, merges_path, self._config)
        padding = bpe.padding or {}
        bpe.no_padding()
        bpe.no_truncation()
        found = {**_special_names(bpe, padding, self._config), **self._config.get("bert4x", {})}
        # Start and end token are added here. Left in place, the processor would also change offsets, in some files.
        self._processor, bpe.post_processor = bpe.post_processor, None
        self._bpe = bpe
        self._configure(**{**found, **options})

    def _configure(self, *, token_pad, token_unk, token_mask, **options):
        super().__init__(**options)
        self._token_pad, self._token_unk, self._token_mask = token_pad, token_unk, token_mask
        self._vocab_size = max(self._bpe.get_vocab().values(), default=-1) + 1
        added = self._bpe.get_added_tokens_decoder().values()
        self._special_tokens = frozenset(token.content for token in added if token.special)
        self._set_special_ids(self._has)
        fallback = END_OF_TEXT if END_OF_TEXT in self._special_tokens else None
        self.end_of_text = self._token_end or _name(self._config, "eos_token") or fallback

    def _has(self, token):
        return token is not None and self._bpe.token_to_id(token) is not None

    def token_to_id(self, token):
        """Id of a token; that of the unknown token if the vocabulary lacks it (ValueError if it lacks that too)."""
        i = self._bpe.token_to_id(token)
        i = self._token_unk_id if i is None else i
        if i is None:
            raise ValueError(f"A token must be in the vocabulary, which has none for unknown ones; got {token!r}.")
        return i

    def id_to_token(self, i):
        """Token of an id (also a numpy integer), "" for ids of extra vocabulary rows beyond the file."""
        return self._bpe.id_to_token(int(i)) or "" if i >= 0 else ""

    def stem(self, token):
        """A token as it reads in the text, without the spaces around it."""
        return self._text([token]).strip()

    def decode(self, ids, tokens=None):
        """Text of a list (or array) of ids, or of tokens; special tokens are dropped."""
        tokens = self.ids_to_tokens(ids) if tokens is None else tokens
        kept = [token for token in tokens if token and not self._is_special(token)]
        return self._text([self._token_translate_inv.get(token, token) for token in kept])

    def rematch(self, text, tokens):
        """For each token, the positions of the characters of `text` that it came from.

        Tokens that make up one character together all get its position. Special tokens, and tokens that the text does
        not have from there on, get [].

        Args:
            text: the string that was tokenized.
            tokens: its tokens as `tokenize` returns them, also cut.
        """
        tokens = list(tokens)
        start = int(bool(tokens) and tokens[0] == self._token_start)
        stop = len(tokens) - int(len(tokens) > start and tokens[-1] == self._token_end)
        positions, cursor = [[] for _ in tokens], 0
        pieces, spans = self._pieces(text), self._spans(text)
        for i in range(start, stop):
            if tokens[i] in pieces[cursor:]:
                cursor = pieces.index(tokens[i], cursor) + 1
                positions[i] = [] if spans[cursor - 1] is None else list(range(*spans[cursor - 1]))
        return positions

    def save_pretrained(self, directory):
        """Writes tokenizer.json and tokenizer_config.json, which `BpeTokenizer(directory)` and transformers read."""
        os.makedirs(directory, exist_ok=True)
        copy = type(self._bpe).from_str(self._bpe.to_str())
        if self._processor is not None:
            copy.post_processor = self._processor
        copy.save(os.path.join(directory, TOKENIZER_FILE))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self._config}
        for ours, theirs in (("pad", "pad"), ("unk", "unk"), ("mask", "mask"), ("start", "bos")):
            token = getattr(self, f"_token_{ours}")
            if token is not None:
                config[f"{theirs}_token"] = token
        if self.end_of_text is not None:
            config["eos_token"] = self.end_of_text
        config["add_bos_token"], config["add_eos_token"] = self._token_start is not None, self._token_end is not None
        config["bert4x"] = {name: getattr(self, f"_{name}") for name in _SAVED}
        with open(os.path.join(directory, CONFIG_FILE), "w", encoding="utf-8") as file:
            json.dump(config, file, ensure_ascii=False, indent=2)

    def _is_special(self, token):
        return token in self._special_tokens or super()._is_special(token)

    def _text(self, tokens):
        decoder = self._bpe.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(tokens)

    def _encodings(self, text):
        """(place, encoding) of the text, or of each of the pre-tokenizer's words."""
        words, cursor, found = [text] if self._pre_tokenize is None else self._pre_tokenize(text), 0, []
        for word in words:
            place = max(text.find(word, cursor), cursor)
            found.append((place, self._bpe.encode(_SURROGATES.sub("\ufffd", word), add_special_tokens=False)))
            cursor = place + len(word)
        return found

    def _pieces(self, text):
        pieces = [piece for _, encoding in self._encodings(text) for piece in encoding.tokens]
        return [self._token_translate.get(piece, piece) for piece in pieces]

    def _body(self, text):
        if self._token_translate:
            return super()._body(text)
        return pack([i for _, encoding in self._encodings(text) for i in encoding.ids])

    def _bodies(self, texts):
        if self._token_translate or self._pre_tokenize is not None:
            return super()._bodies(texts)
        texts = [_SURROGATES.sub("\ufffd", text) for text in texts]
        return [pack(row.ids) for row in self._bpe.encode_batch_fast(texts, add_special_tokens=False)]

    def _spans(self, text):
        spans = []
        for place, encoding in self._encodings(text):
            specials = map(self._special_tokens.__contains__, encoding.tokens)
            for special, (start, end) in zip(specials, _with_marks(text[place:], encoding.offsets), strict=True):
                spans.append(None if special else _trimmed(text, place + start, place + end))
        return spans


def _with_marks(text, offsets):
    """The ranges, those before an accent that belongs to no token made longer: a normalizer put it into its letter."""
    if text.isascii():
        return offsets
    following = [start for start, _ in offsets[1:]] + [len(text)]
    longer = []
    for (start, end), stop in zip(offsets, following, strict=True):
        marks = start < end < stop and all(map(unicodedata.combining, text[end:stop]))
        longer.append((start, stop if marks else end))
    return longer


def _trimmed(text, start, end):
    """The range without spaces around it, unless it is nothing but spaces; None for an empty one."""
    inner = text[start:end].strip()
    if inner:
        start = text.index(inner, start)
        end = start + len(inner)
    return (start, end) if end > start else None


def _load(path, merges_path, config):
    """A `tokenizers.Tokenizer` from a file, from two, or from a directory."""
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError('BpeTokenizer needs the tokenizers library: pip install "bert4x[bpe]"') from error
    path = os.fspath(path)
    if os.path.isdir(path):
        path, merges_path = _files_in(path, config)
    if not os.path.exists(path):
        raise FileNotFoundError(path)  # the library's own error is a bare Exception
    if merges_path is not None:
        return _gpt2(tokenizers, path, os.fspath(merges_path))
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError:
        text = ""  # no text at all, such as a .model file
    model = _model_of(text)
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if kind != "BPE":
        raise ValueError(
            f"BpeTokenizer reads tokenizer.json with a model of type BPE, or vocab.json with merges_path=; {path} has "
            f"{kind!r}. Tokenizer reads WordPiece and SpTokenizer .model files."
        )
    return tokenizers.Tokenizer.from_str(text)


def _model_of(text):
    """What a tokenizer.json calls its model; None for a file of another kind."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content.get("model") if isinstance(content, dict) else None


def _gpt2(tokenizers, vocab_path, merges_path):
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(vocab_path, merges_path))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    if bpe.token_to_id(END_OF_TEXT) is not None:
        bpe.add_special_tokens([END_OF_TEXT])
    return bpe


def _files_in(directory, config):
    paths = [os.path.join(directory, name) for name in (TOKENIZER_FILE, VOCAB_FILE, MERGES_FILE)]
    if os.path.exists(paths[0]):
        return paths[0], None
    if not all(map(os.path.exists, paths[1:])):
        raise FileNotFoundError(
            f"A directory of BpeTokenizer must hold {TOKENIZER_FILE}, or {VOCAB_FILE} and {MERGES_FILE}; {directory} "
            f"holds {sorted(os.listdir(directory))[:20]}. Name another directory, or the file."
        )
    if config.get("tokenizer_class") not in _GPT2_CLASSES:
        raise ValueError(
            f"{VOCAB_FILE} and {MERGES_FILE} do not tell how words are cut, and {config['tokenizer_class']} does it "
            f"otherwise than GPT2. Get the model's {TOKENIZER_FILE}: transformers' save_pretrained writes one."
        )
    return paths[1:]


def _read_config(directory):
    path = None if directory is None else os.path.join(directory, CONFIG_FILE)
    if path is None or not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _name(config, key):
    token = config.get(key)
    return token["content"] if isinstance(token, dict) else token


def _special_names(bpe, padding, config):
    """The names of the special tokens that the files tell."""
    start, end = _added_tokens(bpe)
    if "add_bos_token" in config or "add_eos_token" in config:  # as in transformers, this wins over the template
        start = _name(config, "bos_token") if config.get("add_bos_token") else None
        end = _name(config, "eos_token") if config.get("add_eos_token") else None
    return {
        "token_start": start,
        "token_end": end,
        "token_pad": _name(config, "pad_token") or padding.get("pad_token"),
        "token_unk": _name(config, "unk_token") or getattr(bpe.model, "unk_token", None),
        "token_mask": _name(config, "mask_token"),
    }


def _added_tokens(bpe):
    """The tokens that the file's post-processor puts before and after a text, None for none."""
    encoding = bpe.encode("a")
    if 0 not in encoding.special_tokens_mask:  # a vocabulary without this letter
        encoding = bpe.encode(max(bpe.get_vocab(), key=len))
    flags, tokens = encoding.special_tokens_mask, encoding.tokens
    first = flags.index(0)
    last = len(flags) - flags[::-1].index(0)
    if first > 1 or len(tokens) - last > 1:
        raise ValueError(
            f"At most one token may be put before and after a text; this file puts {tokens[:first]} and "
            f"{tokens[last:]}. Write them into the text, and remove post_processor from the file."
        )
    return next(iter(tokens[:first]), None), next(iter(tokens[last:]), None)
