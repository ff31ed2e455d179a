"""Everything around a model: files, data, fitting, inference, scores. Importing it does not import Keras."""

import importlib

from bert4x.snippets.augment import random_replacement, repeat_rows
from bert4x.snippets.data import DataGenerator
from bert4x.snippets.decoding import AutoRegressiveDecoder
from bert4x.snippets.files import (
    convert_to_str,
    convert_to_unicode,
    find_splits,
    is_string,
    lowercase_and_normalize,
    open,
    string_matching,
    strQ2B,
    uniout,
)
from bert4x.snippets.folds import k_fold
from bert4x.snippets.inference import predict_batched
from bert4x.snippets.last_token import LastToken
from bert4x.snippets.padding import bucket_length, sequence_padding, to_array, truncate_sequences
from bert4x.snippets.parallel import parallel_apply, parallel_apply_generator
from bert4x.snippets.reading import CharacterWords, character_ids, extract_answers
from bert4x.snippets.search import (
    is_one_of,
    longest_common_subsequence,
    longest_common_substring,
    text_segmentate,
)
from bert4x.snippets.seed import set_seed
from bert4x.snippets.semi_supervised import SemiSupervised
from bert4x.snippets.tagging import (
    entities_to_tags,
    gazetteer,
    longest_match,
    longest_words,
    read_entities,
    tags_to_entities,
    tags_to_words,
    words_to_tags,
)
from bert4x.snippets.trees import build_tree, tree_text
from bert4x.snippets.viterbi import ViterbiDecoder

__all__ = [
    "Attributions",
    "AutoRegressiveDecoder",
    "BadWords",
    "Beam",
    "BestWeights",
    "CachedStep",
    "Chain",
    "CharacterWords",
    "Context",
    "DataGenerator",
    "ForcedPrefix",
    "FrequencyPenalty",
    "Generator",
    "Greedy",
    "LastToken",
    "LearningRateLogger",
    "MinNewTokens",
    "MinP",
    "NoRepeatNGram",
    "PresencePenalty",
    "Processor",
    "RepetitionPenalty",
    "Resume",
    "RunPlot",
    "Sample",
    "SemiSupervised",
    "Temperature",
    "SpeculativeGenerator",
    "TensorBoard",
    "TopK",
    "TopP",
    "Typical",
    "ViterbiDecoder",
    "adversarial_training",
    "bucket_length",
    "build_tree",
    "character_ids",
    "convert_to_str",
    "convert_to_unicode",
    "draw",
    "entities_to_tags",
    "exhausted",
    "extract_answers",
    "filter_min_p",
    "filter_top_k",
    "filter_top_p",
    "filter_typical",
    "find_splits",
    "free_lb",
    "gazetteer",
    "gradient_penalty",
    "integrated_gradients",
    "is_finite",
    "is_one_of",
    "k_fold",
    "is_string",
    "longest_common_subsequence",
    "longest_common_substring",
    "longest_match",
    "longest_words",
    "lowercase_and_normalize",
    "open",
    "parallel_apply",
    "parallel_apply_generator",
    "plain_training",
    "plot_history",
    "predict_batched",
    "random_replacement",
    "read_entities",
    "repeat_rows",
    "projected_gradient_descent",
    "save_attributions",
    "save_mask",
    "sequence_padding",
    "set_seed",
    "strQ2B",
    "string_matching",
    "tags_to_entities",
    "tags_to_words",
    "text_segmentate",
    "to_array",
    "tree_text",
    "truncate_sequences",
    "uniform_numbers",
    "uniout",
    "virtual_adversarial_training",
    "words_to_tags",
]

# What needs Keras, which takes seconds to import: only who uses these pays.
_LAZY = {
    "adversarial": (
        "adversarial_training", "free_lb", "gradient_penalty", "plain_training", "projected_gradient_descent",
        "virtual_adversarial_training",
    ),
    "attributions": ("Attributions", "integrated_gradients", "save_attributions"),
    "cached_step": ("CachedStep",),
    "callbacks": ("BestWeights", "LearningRateLogger", "Resume"),
    "filters": (
        "draw", "exhausted", "filter_min_p", "filter_top_k", "filter_top_p", "filter_typical", "is_finite",
        "uniform_numbers",
    ),
    "generation": ("Beam", "Generator"),
    "logs": ("RunPlot", "TensorBoard", "plot_history"),
    "history": (
        "BadWords", "ForcedPrefix", "FrequencyPenalty", "MinNewTokens", "NoRepeatNGram", "PresencePenalty",
        "RepetitionPenalty",
    ),
    "pictures": ("mask_text", "save_mask"),
    "processors": ("Chain", "Context", "Processor"),
    "speculative": ("SpeculativeGenerator",),
    "sampling": ("Greedy", "MinP", "Sample", "Temperature", "TopK", "TopP", "Typical"),
}


def __getattr__(name):
    for module, names in _LAZY.items():
        if name in names:
            return getattr(importlib.import_module(f"bert4x.snippets.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
