"""The CUDA twins of the CPU kernels: the same names, signatures and bits, on arrays of CuPy.

Arrays of NumPy are copied to the device, those of CuPy are taken where they are, views included; results stay on the
device. All work goes to CuPy's current stream. CuPy is imported by the first call, and importing this package needs
NumPy alone.

The kernels are compiled for every supported architecture and held to `hashstream.kernels.reference` by an emulation of
their threads on the CPU; so far they have not been run on a GPU.
"""

from hashstream.kernels.cuda._device import is_available
from hashstream.kernels.cuda.buckets import DeviceBuckets, count_buckets, new_bucket_arrays
from hashstream.kernels.cuda.encode import DeviceRows, RowEncoder, encode_rows
from hashstream.kernels.cuda.hamming import hamming_histogram, hamming_topk
from hashstream.kernels.cuda.pack import pack_bits

__all__ = [
    "DeviceBuckets",
    "DeviceRows",
    "RowEncoder",
    "count_buckets",
    "encode_rows",
    "hamming_histogram",
    "hamming_topk",
    "is_available",
    "new_bucket_arrays",
    "pack_bits",
]
