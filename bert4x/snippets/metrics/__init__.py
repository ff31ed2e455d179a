"""Scores of the tasks, as their official scorers define them: pure functions on strings, lists and dicts."""

from bert4x.snippets.metrics.counts import Score, overlap, score
from bert4x.snippets.metrics.extraction import argument_score, argument_similarity, triple_score
from bert4x.snippets.metrics.generation import bleu, generation_score, rouge_l, rouge_n
from bert4x.snippets.metrics.label import (
    accuracy,
    entity_score,
    majority_accuracy,
    segmentation_score,
    vocabulary_recalls,
)
from bert4x.snippets.metrics.reading import (
    cmrc_em,
    cmrc_f1,
    cmrc_score,
    dureader_em,
    dureader_f1,
    dureader_score,
    sogou_accuracy,
    sogou_f1,
    sogou_score,
)
from bert4x.snippets.metrics.sql import execute, execution_match, logical_form_match, nl2sql_score

__all__ = [
    "Score",
    "accuracy",
    "argument_score",
    "argument_similarity",
    "bleu",
    "cmrc_em",
    "cmrc_f1",
    "cmrc_score",
    "dureader_em",
    "dureader_f1",
    "dureader_score",
    "entity_score",
    "execute",
    "execution_match",
    "generation_score",
    "logical_form_match",
    "majority_accuracy",
    "nl2sql_score",
    "overlap",
    "rouge_l",
    "rouge_n",
    "score",
    "segmentation_score",
    "sogou_accuracy",
    "sogou_f1",
    "sogou_score",
    "triple_score",
    "vocabulary_recalls",
]
