"""WordPiece written literally, slowly and obviously: what the tokenizer must equal; and the texts it is tried on."""

import random
import unicodedata

SMALL = ("[PAD] [UNK] [CLS] [SEP] [MASK] un ##aff ##able hello world , ! 我 爱 北 京 20 ##20 年 a ##b ##c cafe "
         "[ ] mask ## # σ ##ς ##σ ς ᄒ ##ᅡ ##ᆫ i . ' it s ##a b c").split()
SMALL_VOCAB = {token: index for index, token in enumerate(SMALL)}


def is_cjk(character):
    code = ord(character)
    return (0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x2A6DF
            or 0x2A700 <= code <= 0x2B73F or 0x2B740 <= code <= 0x2B81F or 0x2B820 <= code <= 0x2CEAF
            or 0xF900 <= code <= 0xFAFF or 0x2F800 <= code <= 0x2FA1F)


def is_punctuation(character):
    code = ord(character)
    ascii_sign = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_sign or unicodedata.category(character)[0] == "P"


def fold(text):
    """Lower case, NFD, accents dropped."""
    text = unicodedata.normalize("NFD", text.lower())
    return "".join(c for c in text if unicodedata.category(c) != "Mn")


def clean(text):
    """Control characters dropped, spaces made equal, spaces around CJK."""
    out = ""
    for character in text:
        if character in "\t\n\r" or unicodedata.category(character) == "Zs":
            out += " "
        elif character in "\0\ufffd" or unicodedata.category(character) in ("Cc", "Cf"):
            continue
        elif is_cjk(character):
            out += " " + character + " "
        else:
            out += character
    return out


def split_punctuation(text):
    return "".join(" " + c + " " if is_punctuation(c) else c for c in text)


def words(text, lower):
    """The common pipeline, in the order of the specification: fold first, then clean the whole text."""
    return split_punctuation(clean(fold(text) if lower else text)).split()


def google_words(text, lower):
    """The same in the order of Google's BERT: clean, cut at spaces, then fold each word by itself."""
    found = clean(text).split()
    return [part for word in found for part in split_punctuation(fold(word) if lower else word).split()]


def pieces(word, vocab, limit=200):
    """Greedy longest match; the raw word if it is too long or cannot be made up."""
    if len(word) > limit:
        return [word]
    found, start = [], 0
    while start < len(word):
        for stop in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:stop]
            if piece in vocab:
                break
        else:
            return [word]
        found.append(piece)
        start = stop
    return found


def tokens(text, vocab, lower):
    return [piece for word in words(text, lower) for piece in pieces(word, vocab)]


def ids(text, vocab, lower, unknown="[UNK]"):
    return [vocab.get(token, vocab[unknown]) for token in tokens(text, vocab, lower)]


HARD = [
    "",
    " \t\n\r\u3000\u00a0\u2003",
    "hello world, 我爱北京2020年!",
    "我爱\U00020000\U0002a6df\U0002a700\U0002b740\U0002b820\U0002b920\U0002ceaf\uf900\U0002f800北京",  # all CJK blocks
    "\U0002ceb0\U00030000\u2f00\u3007",  # ideographs that are not CJK in BERT's sense
    "かな カナ ﾊﾝｶｸ 한국어 ㄱㄴㄷ 각 가",
    "Café CAFÉ Cafe\u0301 c\u0327a\u0301\u0302f\u0323e",
    "Ａｂｃ１２３，。！＂＃＄％＋＜＝＞￥～·…—–“”‘’「」《》【】",
    "😀👍🏽 👨‍👩‍👧‍👦 🇨🇳 ☺\ufe0f ☺ a😀b",
    "un\u200baff\u200cable \u200d\ufeff\u2060 soft\u00adhyphen \u202eabc\u202c",
    "a\0b \ufffd\x07c \x7f\x80\x85\x1c\x1d\x1e\x1fd",
    "a\u2028b\u2029c\u1680d\u180ee\u205ff",
    "İstanbul DİYARBAKIR ıI İ\u0307",
    "ΟΔΥΣΣΕΥΣ Σ ΑΣ. ΑΣ'Α Α.Σ ΑΣ中 ΑΣ\u00adΑ ΑΣ\u0301 Σ'",
    "ẞß ﬁ ﬂ Ǆ ŉ ǰ ΐ Ω Å ̈ ͅ",
    "\u0301 \u0301a 我\u0301 ,\u0301 \u0301\u0301",
    "\u1b06 \u1b35\u1b44 \u302e\u302f \U0001d15e\U0001d165\U0001d16d",  # marks that NFD reorders but that stay
    "a\u302f\u302eb \U0001d16d\u0334\U0001d165",
    "a" * 199, "a" * 200, "a" * 201, "b" * 1000, "abc" * 50, "我" * 300, "é" * 201, "e\u0301" * 200,
    "[CLS] [MASK][SEP] [mask] [PAD]x[UNK] [unused1] ##able ##",
    "it's don't 3.14 1,000 http://a.b/c?d=e#f user@host C++ C# .NET -_- `~^$+<=>|",
    "\ue000\uf8ff\U000f0000 \u0378 \U0010ffff",  # private use, unassigned
    "\ud800a \udfff我\udc00",  # lone surrogates
    "𝔘𝔫𝔦 𝐀 Ⅷ ① ½ ㎏ ㍿ ℃ № ™",
    "हिन्दी தமிழ் ไทย ລາວ မြန်မာ ខ្មែរ עִבְרִית العَرَبِيَّة",
]

_POOLS = [
    [chr(code) for code in range(0x20, 0x7F)],
    [chr(code) for code in range(0x4E00, 0x4F00)],
    [chr(code) for code in range(0xAC00, 0xAD00)] + [chr(code) for code in range(0x1100, 0x1200)],
    list("ΑΒΓΔΣΣΣσςάΆ'.:·\u00ad\u0301"),
    [chr(code) for code in range(0x300, 0x370)],
    list("\t\n\r \u00a0\u2003\u3000\u2028\0\x01\x7f\x85\u200b\u200d\ufeff\ufffd\ufe0f"),
    list("\u1715\u1734\u1b44\u302e\u302f\ua953\U000111c0\U0001d15e\U0001d165\U0001d16d\u0334\u0301"),
    list("，。！？：；（）《》“”‘’…—、·￥＋～"),
    list("aábcABCİıiIéÉñßẞﬁ"),
    [chr(code) for code in range(0x1F300, 0x1F650)],
    [chr(code) for code in range(0x3040, 0x3100)],
]


def random_texts(count, seed=0):
    """Strings of 0-40 characters from three pools each, one of which is all of Unicode with its surrogates."""
    source = random.Random(seed)
    texts = []
    for _ in range(count):
        pools = source.choices(_POOLS, k=2)
        texts.append("".join(
            chr(source.randrange(0x110000)) if source.random() < 0.1 else source.choice(source.choice(pools))
            for _ in range(source.randrange(41))
        ))
    return texts
