"""Arrays in, arrays out: the arithmetic of HashStream on the CPU. `reference` says in plain NumPy what each means."""

from hashstream.kernels.buckets import (
    FIXED_POINT_LIMIT,
    FIXED_POINT_SCALE,
    BucketArrays,
    count_buckets,
    lookup_buckets,
    merge_buckets,
    new_bucket_arrays,
    shorten_buckets,
)
from hashstream.kernels.encode import ACTIVATIONS, EncodedRows, EncoderWeights, encode_rows, prepare_weights
from hashstream.kernels.hamming import hamming_distances, hamming_topk
from hashstream.kernels.moments import GeneMoments, gene_moments
from hashstream.kernels.neighbours import hamming_neighbours
from hashstream.kernels.pack import pack_bits, prefix_mask, unpack_bits, words_for_bits
from hashstream.kernels.rows import RowFlag, check_rows, log_normalise
from hashstream.kernels.ward import ward_linkage

__all__ = [
    "ACTIVATIONS",
    "FIXED_POINT_LIMIT",
    "FIXED_POINT_SCALE",
    "BucketArrays",
    "EncodedRows",
    "EncoderWeights",
    "GeneMoments",
    "RowFlag",
    "check_rows",
    "count_buckets",
    "encode_rows",
    "gene_moments",
    "hamming_distances",
    "hamming_neighbours",
    "hamming_topk",
    "log_normalise",
    "lookup_buckets",
    "merge_buckets",
    "new_bucket_arrays",
    "pack_bits",
    "prefix_mask",
    "prepare_weights",
    "shorten_buckets",
    "unpack_bits",
    "ward_linkage",
    "words_for_bits",
]
