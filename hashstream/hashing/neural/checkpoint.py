"""Training on disk: weights and optimiser as safetensors, the rest as JSON; written aside and renamed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hashstream.errors import InputError, SettingsError
from hashstream.runtime.files import file_digest, remove, write_json

_META = "checkpoint.json"
_PREFIXES = ("model", "best")


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: dict[str, Tensor],
    state: dict[str, Any],
    made_from: dict[str, Any],
) -> None:
    """Keep all that training needs to go on; the JSON, written last, names the tensors that belong to it."""
    from safetensors.torch import save_file

    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for number, values in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": torch.as_tensor(value) for name, value in values.items()}
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{state['step']:08d}.safetensors"
    aside = folder / f"{name}.partial"
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, aside)
    with aside.open("rb") as handle:
        os.fsync(handle.fileno())
    aside.replace(folder / name)
    content = {"tensors": name, "tensors_sha256": file_digest(folder / name), "state": state, "made_from": made_from}
    write_json(folder / _META, {**content, "sha256": _digest(content)})
    for old in folder.glob("step-*"):
        if old.name != name:
            remove(old)


def load_checkpoint(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, made_from: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Put model and optimiser where the checkpoint left them; gives the state and the best weights, or None if none.

    Raises
    ------
    SettingsError
        If the checkpoint was made from another sample, seed or settings.
    InputError
        If it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / _META).is_file():
        return None
    try:
        meta = json.loads((folder / _META).read_text())
        if meta.pop("sha256") != _digest(meta):
            raise ValueError(f"{_META} is not what its checksum says")
        _check_origin(folder, meta["made_from"], made_from)
        if file_digest(folder / Path(meta["tensors"]).name) != meta["tensors_sha256"]:
            raise ValueError(f"{meta['tensors']} is not what its checksum says")
        tensors = load_file(folder / Path(meta["tensors"]).name)
        parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in (*_PREFIXES, "optimiser")}
        for key, tensor in tensors.items():
            prefix, _, name = key.partition(".")
            parts[prefix][name] = tensor
        model.load_state_dict(parts["model"])
        optimiser.load_state_dict(_optimiser_state(optimiser, parts["optimiser"]))
        device = next(model.parameters()).device
        return dict(meta["state"]), {name: tensor.to(device) for name, tensor in parts["best"].items()}
    except (AttributeError, KeyError, ValueError, TypeError, RuntimeError, SafetensorError, OSError) as error:
        raise InputError(
            f"{folder}: the checkpoint is damaged ({type(error).__name__}: {error}). Start over without --resume."
        ) from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode()).hexdigest()


def _optimiser_state(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    return {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}


def _check_origin(folder: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    different = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    if different:
        details = "; ".join(f"{key}: was {found.get(key)}, is {expected.get(key)}" for key in different)
        raise SettingsError(
            f"{folder}: this training was begun with another sample or other settings ({details}). Continue with the "
            "same command, or start over without --resume."
        )
