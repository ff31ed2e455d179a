"""CPM-LM: a GPT2 of 2.6 billion parameters for Chinese."""

from bert4x.models.gpt2 import GPT2


class CPM(GPT2):
    """GPT2 with CPM-LM's vocabulary, in which id 0 is <unk> and id 5 the padding (arXiv:2012.00413).

    Its SentencePiece model and pre-tokenisation: `bert4x.tokenizers.CPMTokenizer`.
    """
