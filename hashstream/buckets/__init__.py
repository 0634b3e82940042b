"""Buckets and tokens: count, merge, look up."""

from hashstream.buckets.table import DEFAULT_MAX_BUCKETS, BucketIndex, BucketTable
from hashstream.buckets.tokens import Tokens

__all__ = ["DEFAULT_MAX_BUCKETS", "BucketIndex", "BucketTable", "Tokens"]
