"""Learn tokens with a Transformer over buckets and the buckets around them. Only calling it loads torch."""

from hashstream.cluster.transformer.learn import TransformerResult, check_torch, learn_tokens, transformer_clusters
from hashstream.cluster.transformer.sequences import TokenSequences, token_sequences
from hashstream.cluster.transformer.settings import TransformerSettings

__all__ = [
    "TokenSequences",
    "TransformerResult",
    "TransformerSettings",
    "check_torch",
    "learn_tokens",
    "token_sequences",
    "transformer_clusters",
]
