"""Makes a WordPiece vocabulary of a corpus: special tokens, characters, and pieces of words written in letters.

    python scripts/pretrain/vocabulary.py corpus/ --output vocab.txt --size 7000

Chinese characters are tokens by themselves (the tokenizer puts spaces around them), so only runs of letters and digits
have pieces; `tokenizers` (pip install tokenizers) learns these. Without it the most frequent runs are taken whole.
"""

import argparse
import collections
import gzip
import importlib.util
import re
from pathlib import Path

from corpus import find_files, read_documents

from bert4x.tokenizers import lowercase_and_normalize, save_vocab
from bert4x.tokenizers.text import is_cjk, is_punctuation

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Letters and digits up to the first CJK block.
_RUN = re.compile(r"[^\W_\u2e80-\U0003ffff]+")
UNUSED = tuple(f"[unused{i}]" for i in range(1, 11))  # for labels and separators of downstream tasks


def count_characters(texts):
    """How often each character occurs that is a token by itself, after lower-casing."""
    counts = collections.Counter()
    for text in texts:
        counts.update(text)
    alone = collections.Counter()
    for character, count in counts.items():
        for folded in lowercase_and_normalize(character):
            if is_cjk(folded) or is_punctuation(folded):
                alone[folded] += count
    return alone


def count_runs(texts):
    """How often each run of letters and digits occurs, after lower-casing."""
    return collections.Counter(run for text in texts for run in _RUN.findall(lowercase_and_normalize(text)))


def train_pieces(runs, size):
    """At most `size` pieces for runs of letters and digits, the letters among them."""
    letters = collections.Counter()
    for run, count in runs.items():
        letters.update({letter: count * run.count(letter) for letter in set(run)})
    letters = [letter for letter, count in letters.most_common(size // 4) if count > 1 and letter.isprintable()]
    base = sorted({*letters, *(f"##{letter}" for letter in letters if letter.isalnum())})
    if importlib.util.find_spec("tokenizers") is None:
        whole = [run for run, count in runs.most_common(size) if count > 1 and len(run) > 1]
        return [*base, *whole][:size]
    from tokenizers import Tokenizer, models, trainers

    trainer = trainers.WordPieceTrainer(vocab_size=size, initial_alphabet=letters, limit_alphabet=len(letters),
                                        show_progress=False, min_frequency=3)
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.train_from_iterator((run for run, count in sorted(runs.items()) for _ in range(count)), trainer)
    # Sorted, since the trainer numbers pieces of one frequency differently from run to run.
    return list(dict.fromkeys([*base, *sorted(learner.get_vocab())]))


def build_vocabulary(texts, size, *, pieces=1000, cover=(), words=0):
    """{token: id}: special tokens, then characters by frequency, then pieces, then frequent words.

    Args:
        texts: the corpus, strings.
        size: tokens at most.
        pieces: of these, pieces of runs of letters and digits.
        cover: further texts; their characters that occur twice are included too, behind those of the corpus.
        words: of `size`, Chinese words (jieba), for tokenizers with `pre_tokenize`.
    """
    texts = list(texts)
    alone, also = count_characters(texts), count_characters(cover)
    fixed = [*SPECIAL, *UNUSED, *train_pieces(count_runs(texts), pieces), *frequent_words(texts, words)]
    characters = [c for c, count in alone.most_common() if count > 1]
    characters += [c for c, count in also.most_common() if count > 1]
    characters = list(dict.fromkeys(characters))[: max(0, size - len(fixed))]
    tokens = dict.fromkeys([*SPECIAL, *UNUSED, *characters, *fixed])
    return {token: number for number, token in enumerate(tokens)}


def frequent_words(texts, count):
    """The most frequent words of two characters or more."""
    if not count:
        return []
    import jieba

    words = collections.Counter(word for text in texts for word in jieba.lcut(lowercase_and_normalize(text)))
    return [word for word, _ in words.most_common() if len(word) > 1 and all(map(is_cjk, word))][:count]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", nargs="+", help="text files, or folders of them")
    parser.add_argument("--output", default="vocab.txt", help="file to write (%(default)s)")
    parser.add_argument("--size", type=int, default=7000, help="tokens at most (%(default)s)")
    parser.add_argument("--pieces", type=int, default=1000, help="of these, pieces of words in letters (%(default)s)")
    parser.add_argument("--words", type=int, default=0, help="of these, whole Chinese words, by jieba (%(default)s)")
    parser.add_argument("--cover", nargs="*", default=[], help="further files or folders whose characters are needed")
    args = parser.parse_args(argv)
    texts = [text for path in find_files(args.corpus) for text in read_documents(path)]
    # Task data comes in many formats, but characters can be counted in all of them.
    cover = (_unzipped(file) for path in args.cover for file in sorted(Path(path).rglob("*.gz")))
    vocab = build_vocabulary(texts, args.size, pieces=args.pieces, cover=cover, words=args.words)
    save_vocab(args.output, vocab)
    print(f"{len(vocab):,} tokens in {args.output}")


def _unzipped(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read()


if __name__ == "__main__":
    main()
