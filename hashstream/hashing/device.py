"""Where learned hash functions are trained."""

from __future__ import annotations

from hashstream.errors import MissingDependencyError, SettingsError

DEVICES = ("auto", "cpu", "cuda")


def choose_device(device: str, *, method: str) -> str:
    """cpu or cuda for auto, cpu or cuda.

    Parameters
    ----------
    device
    method
        Of `fit`, for messages.

    Raises
    ------
    MissingDependencyError
        If torch is not installed.
    SettingsError
        If cuda is asked for and torch sees none.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"--method {method} trains with torch, which cannot be imported ({error}). Install it: "
            "pip install 'hashstream[neural]'. Neither --method pca-itq nor using a fitted hasher needs torch."
        ) from error
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise SettingsError(
            f"--device cuda: torch {torch.__version__} sees no CUDA device; use --device cpu, or install a torch built "
            "for the CUDA of this machine."
        )
    return "cuda" if there and device != "cpu" else "cpu"
