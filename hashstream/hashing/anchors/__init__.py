"""The supervised hash function: cell anchors, a closed-form and a deep head. Only the training needs torch."""

from hashstream.hashing.anchors.codebook import CodeBook, code_book
from hashstream.hashing.anchors.fit import fit_anchors
from hashstream.hashing.anchors.settings import AnchorSettings

__all__ = ["AnchorSettings", "CodeBook", "code_book", "fit_anchors"]
