"""SentencePiece: the tokenizer of T5, mT5, English ALBERT and CPM, from a .model file."""

import glob
import os

from bert4x.tokenizers.base import TokenizerBase
from bert4x.tokenizers.vocab import read_settings, write_settings

MODEL_FILE = "spiece.model"
SPACE = "\u2581"
_SAVED = ("token_start", "token_end", "token_translate")


class SpTokenizer(TokenizerBase):
    """A sentencepiece model with the methods of the other tokenizers.

    Pieces that begin a word start with U+2581; a space before the text is implied. With `pre_tokenize`, the
    words are joined by single spaces first.

    Args:
        sp_model_path: path of the .model file, or a directory with one, perhaps with the settings that
            `save_pretrained` wrote.
        options: token_start, token_end, pre_tokenize, token_translate as in `TokenizerBase`. The defaults
            [CLS] and [SEP] suit English ALBERT; T5 takes token_start=None, token_end="</s>"; CPM None twice.
    Raises: ImportError with the pip line if sentencepiece is not installed.
    """

    def __init__(self, sp_model_path, **options):
        saved = {}
        if os.path.isdir(sp_model_path):
            saved = _settings(sp_model_path)
            sp_model_path = _model_in(sp_model_path)
        super().__init__(**{**saved, **options})
        with open(sp_model_path, "rb") as file:
            model = file.read()
        try:
            self._load(model)
        except RuntimeError as error:  # all that the library says of a file of another kind
            raise ValueError(
                f"{os.fspath(sp_model_path)} is no SentencePiece model, or a damaged one. Tokenizer reads vocab.txt, "
                "BpeTokenizer tokenizer.json."
            ) from error

    def _load(self, model):
        try:
            import sentencepiece
        except ImportError as error:
            raise ImportError("SpTokenizer needs sentencepiece: pip install sentencepiece") from error
        self._sp_model = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._vocab_size = self._sp_model.get_piece_size()
        self._token_pad, self._token_unk = (
            self._sp_model.id_to_piece(i) if i >= 0 else None
            for i in (self._sp_model.pad_id(), self._sp_model.unk_id())
        )
        masks = [token for token in ("[MASK]", "<mask>") if self._has(token)]
        self._token_mask = masks[0] if masks else None
        self._set_special_ids(self._has)

    def __getstate__(self):
        state = {name: value for name, value in self.__dict__.items() if name != "_sp_model"}
        return state, self._sp_model.serialized_model_proto()

    def __setstate__(self, state):
        settings, model = state
        self.__dict__.update(settings)
        self._load(model)

    def _has(self, token):
        if token is None:
            return False
        return self._sp_model.id_to_piece(self._sp_model.piece_to_id(token)) == token

    def token_to_id(self, token):
        """Id of a piece; that of the unknown piece if the model lacks it."""
        return self._sp_model.piece_to_id(token)

    def id_to_token(self, i):
        """Piece of an id (also a numpy integer), "" for ids of extra vocabulary rows beyond the model."""
        i = int(i)
        return self._sp_model.id_to_piece(i) if 0 <= i < self._vocab_size else ""

    def stem(self, token):
        """A piece without its space marker."""
        return token.replace(SPACE, "")

    def decode(self, ids, tokens=None):
        """Text of a list (or array) of ids, or of tokens; control, unknown and unused pieces are dropped."""
        tokens = self.ids_to_tokens(ids) if tokens is None else tokens
        kept = [token for token in tokens if token and not self._is_special(token)]
        return self._sp_model.decode_pieces([self._token_translate_inv.get(token, token) for token in kept])

    def save_pretrained(self, directory):
        """Writes spiece.model and tokenizer_config.json, which `SpTokenizer(directory)` reads."""
        write_settings(directory, {name: getattr(self, f"_{name}") for name in _SAVED})
        with open(os.path.join(directory, MODEL_FILE), "wb") as file:
            file.write(self._sp_model.serialized_model_proto())

    def _is_special(self, token):
        model, i = self._sp_model, self._sp_model.piece_to_id(token)
        if i == model.unk_id():
            # A piece of the text that the model lacks has this id too, but is no special token.
            return token == self._token_unk
        return model.is_control(i) or model.is_unused(i)

    def _joined(self, text):
        return text if self._pre_tokenize is None else " ".join(self._pre_tokenize(text))

    def _pieces(self, text):
        pieces = self._sp_model.encode_as_pieces(self._joined(text))
        return [self._token_translate.get(piece, piece) for piece in pieces]

    def _trace(self, text):
        """Normalised characters without space markers, and their places (see `text.trace`)."""
        joined = self._joined(text)
        origin = range(len(text)) if self._pre_tokenize is None else _origins(text, joined)
        normalised, places = self._sp_model.normalize(joined, with_offsets=True)
        characters, starts, ends = [], [], []
        for i, character in enumerate(normalised):
            if character != SPACE and places[i] < len(origin):
                characters.append(character)
                starts.append(origin[places[i]])
                ends.append(origin[max(places[i + 1] - 1, places[i])] + 1)
        return "".join(characters), starts, ends

    def _match(self, characters, tokens):
        return super()._match(characters, _join_bytes(self._sp_model, tokens))


def _join_bytes(model, tokens):
    """Tokens with byte pieces (<0xE4> ...) replaced: a character's last one by the character, others by ""."""
    joined, pending = [], b""
    for token in tokens:
        if not model.is_byte(model.piece_to_id(token)):
            joined.append(token)
            pending = b""
            continue
        pending += bytes([int(token[3:5], 16)])
        character = pending.decode("utf-8", errors="ignore")
        joined.append(character)
        pending = b"" if character else pending
    return joined


def _origins(text, joined):
    """Place in `text` of every character of its words joined by spaces.

    A pre-tokenizer may replace characters one for one (CPM writes U+2582 for a space): a word that is not
    found is taken to stand where the previous one ended.
    """
    origins, cursor = [], 0
    for word in joined.split(" "):
        at = text.find(word, cursor)
        at = cursor if at < 0 else at
        origins += [min(at + k, max(len(text) - 1, 0)) for k in range(len(word))]
        cursor = at + len(word)
        origins.append(min(cursor, max(len(text) - 1, 0)))
    return origins[:-1]


def _model_in(directory):
    models = sorted(glob.glob(os.path.join(glob.escape(os.fspath(directory)), "*.model")))
    if len(models) != 1:
        found = [os.path.basename(path) for path in models]
        raise ValueError(
            f"A tokenizer directory must hold one .model file; {os.fspath(directory)} has {found}. Pass the "
            "path of the file."
        )
    return models[0]


def _settings(directory):
    return {name: value for name, value in read_settings(directory).items() if name in _SAVED}
