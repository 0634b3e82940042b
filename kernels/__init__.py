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
from hashstream.kernels.distances import squared_distances
from hashstream.kernels.encode import (
    ACTIVATIONS,
    EncodedRows,
    EncoderWeights,
    GeneMap,
    affine_rows,
    encode_rows,
    prepare_weights,
)
from hashstream.kernels.gram import gram_times, rows_times
from hashstream.kernels.group_sums import GROUP_SUM_SCALE, GroupSums, group_sums
from hashstream.kernels.hamming import hamming_topk
from hashstream.kernels.largest import largest_columns
from hashstream.kernels.moments import GeneMoments, gene_moments
from hashstream.kernels.multi_index import MultiIndex
from hashstream.kernels.neighbours import hamming_neighbours
from hashstream.kernels.pack import count_set_bits, pack_bits, prefix_mask, unpack_bits, words_for_bits
from hashstream.kernels.plan import SearchPlan, plan_search
from hashstream.kernels.residuals import residual_sums
from hashstream.kernels.rows import RowFlag, check_rows, row_totals
from hashstream.kernels.ward import ward_linkage
from hashstream.kernels.within import (
    CodesWithin,
    count_within,
    hamming_histogram,
    hamming_radius,
    hamming_radius_blocks,
)

__all__ = [
    "ACTIVATIONS",
    "FIXED_POINT_LIMIT",
    "FIXED_POINT_SCALE",
    "GROUP_SUM_SCALE",
    "BucketArrays",
    "CodesWithin",
    "EncodedRows",
    "EncoderWeights",
    "GeneMap",
    "GeneMoments",
    "GroupSums",
    "MultiIndex",
    "RowFlag",
    "SearchPlan",
    "affine_rows",
    "check_rows",
    "count_buckets",
    "count_set_bits",
    "count_within",
    "encode_rows",
    "gene_moments",
    "gram_times",
    "group_sums",
    "hamming_histogram",
    "hamming_neighbours",
    "hamming_radius",
    "hamming_radius_blocks",
    "hamming_topk",
    "largest_columns",
    "lookup_buckets",
    "merge_buckets",
    "new_bucket_arrays",
    "pack_bits",
    "plan_search",
    "prefix_mask",
    "prepare_weights",
    "residual_sums",
    "row_totals",
    "rows_times",
    "shorten_buckets",
    "squared_distances",
    "unpack_bits",
    "ward_linkage",
    "words_for_bits",
]
