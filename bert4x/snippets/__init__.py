"""Everything around a model: files, data, fitting, inference, scores. Importing it does not import Keras."""

from bert4x.snippets.data import DataGenerator
from bert4x.snippets.decoding import AutoRegressiveDecoder
from bert4x.snippets.files import (
    convert_to_str,
    convert_to_unicode,
    is_string,
    lowercase_and_normalize,
    open,
    string_matching,
    strQ2B,
    uniout,
)
from bert4x.snippets.inference import predict_batched
from bert4x.snippets.last_token import LastToken
from bert4x.snippets.padding import bucket_length, sequence_padding, to_array, truncate_sequences
from bert4x.snippets.parallel import parallel_apply, parallel_apply_generator
from bert4x.snippets.search import (
    is_one_of,
    longest_common_subsequence,
    longest_common_substring,
    text_segmentate,
)
from bert4x.snippets.seed import set_seed

__all__ = [
    "AutoRegressiveDecoder",
    "BestWeights",
    "DataGenerator",
    "LastToken",
    "LearningRateLogger",
    "Resume",
    "bucket_length",
    "convert_to_str",
    "convert_to_unicode",
    "is_one_of",
    "is_string",
    "longest_common_subsequence",
    "longest_common_substring",
    "lowercase_and_normalize",
    "open",
    "parallel_apply",
    "parallel_apply_generator",
    "predict_batched",
    "sequence_padding",
    "set_seed",
    "strQ2B",
    "string_matching",
    "text_segmentate",
    "to_array",
    "truncate_sequences",
    "uniout",
]


def __getattr__(name):
    # The callbacks are classes of Keras, which takes seconds to import: only who uses them pays.
    if name in ("BestWeights", "LearningRateLogger", "Resume"):
        from bert4x.snippets import callbacks

        return getattr(callbacks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
