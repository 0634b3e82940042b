"""Buckets and tokens: count, merge, look up."""

from hashstream.buckets.landmarks import N_LANDMARKS, Landmarks, landmark_rows
from hashstream.buckets.table import DEFAULT_MAX_BUCKETS, BucketIndex, BucketTable, table_bytes
from hashstream.buckets.tokens import Tokens

__all__ = [
    "DEFAULT_MAX_BUCKETS",
    "N_LANDMARKS",
    "BucketIndex",
    "BucketTable",
    "Landmarks",
    "Tokens",
    "landmark_rows",
    "table_bytes",
]
