"""What a family is used for: `lm` and `unilm` change the attention mask and nothing else."""

from bert4x.layers import CausalMask, UniLMMask


class LanguageModel:
    """Mixin: each token sees itself and what precedes it; the logits at i predict token i + 1."""

    application = "lm"
    causal = True

    def application_mask(self, inputs, walk):
        return self.layer("Attention-LM-Mask", CausalMask)(inputs["token"], **walk.slots())


class UnifiedLanguageModel:
    """Mixin: segment 0 is a source seen both ways, segment 1 a target seen causally. Source: arXiv:1905.03197."""

    application = "unilm"
    next_segment = 1

    def application_mask(self, inputs, walk):
        return self.layer("Attention-UniLM-Mask", UniLMMask)(inputs["segment"], **walk.slots())


def extend_with_language_model(base):
    """The family `base` as a causal language model: a class."""
    if issubclass(base, LanguageModel):
        return base
    return type(f"{base.__name__}LM", (LanguageModel, base), {"__doc__": LanguageModel.__doc__})


def extend_with_unified_language_model(base):
    """The family `base` as a UniLM: a class."""
    return type(f"{base.__name__}UniLM", (UnifiedLanguageModel, base), {"__doc__": UnifiedLanguageModel.__doc__})
