"""Annotate bucket tokens. This room sees tokens only, never the matrix."""

from hashstream.annotate.vote import UNKNOWN, Vote, vote_labels

__all__ = ["UNKNOWN", "Vote", "vote_labels"]
