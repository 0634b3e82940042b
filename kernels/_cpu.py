"""What numba compiles for: the processor at hand, or the same without AVX-512 where the environment asks for that."""

from __future__ import annotations

import os
from typing import Any

import llvmlite.binding
import numba

#: Set to anything but 0 or nothing, kernels are compiled without AVX-512. Read when `hashstream.kernels` is imported,
#: which must be before numba has compiled anything.
NO_AVX512 = "HASHSTREAM_NO_AVX512"

config: Any = numba.config  # numba makes its attributes as it reads the environment


def leave_out_avx512() -> None:
    """Tells numba of no AVX-512 if the environment says so, or what the processor has is left as it is."""
    if os.environ.get(NO_AVX512, "0") in ("", "0") or not has_feature("avx512f"):
        return
    features = _features(config.CPU_FEATURES) if config.CPU_FEATURES else dict(_host_features())
    names = {name: held and not name.startswith("avx512") for name, held in features.items()}
    config.CPU_FEATURES = ",".join(f"{'+' if held else '-'}{name}" for name, held in sorted(names.items()))


def has_feature(name: str) -> bool:
    """Whether numba compiles for a processor with this feature, by LLVM's name for it."""
    if config.CPU_FEATURES is not None:
        return _features(config.CPU_FEATURES).get(name, False)
    if config.CPU_NAME:  # another processor than the host, of which nothing is known
        return False
    return _host_features().get(name, False)


def reads_ahead() -> bool:
    """Whether the processor at hand reads in order fastest if nothing is asked for ahead: AMD's since Zen."""
    return llvmlite.binding.get_host_cpu_name().startswith("znver")


def _features(text: str) -> dict[str, bool]:
    return {feature[1:]: feature[0] == "+" for feature in text.split(",") if feature}


def _host_features() -> dict[str, bool]:
    return dict(llvmlite.binding.get_host_cpu_features())
