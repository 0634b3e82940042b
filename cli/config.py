"""Configuration files: packaged defaults, a user's YAML over them, unknown keys refused.

Precedence, highest first: command line, environment (HASHSTREAM_*), the file given with --config, the defaults.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import click


def load_defaults() -> dict[str, Any]:
    """The packaged defaults: one mapping a command."""
    import yaml

    return yaml.safe_load((files("hashstream.configs") / "defaults.yaml").read_text())


def load_config(path: Path, group: click.Group) -> dict[str, Any]:
    """A user's YAML, checked against the options of `group` and its commands.

    Raises
    ------
    click.UsageError
        If the file is missing, is no YAML mapping, or has keys that no command knows.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise click.UsageError(f"--config {path}: no such file.") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise click.UsageError(f"--config {path}: cannot be read as YAML ({error}).") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise click.UsageError(f"--config {path}: expected a mapping of commands to options.")
    own = {name.replace("_", "-") for name in option_names(group)}
    out: dict[str, Any] = {}
    for raw_key, value in content.items():
        key = str(raw_key).replace("_", "-")
        command = group.commands.get(key)
        if command is None:
            if key == "dataset" or key in own - {"config", "help"}:
                out[str(raw_key).replace("-", "_")] = value
                continue
            known = ", ".join(sorted([*group.commands, *(own - {"config", "help"})]))
            raise click.UsageError(f"--config {path}: unknown key {raw_key!r}; expected one of {known}.")
        if not isinstance(value, dict):
            raise click.UsageError(f"--config {path}: {raw_key!r} must be a mapping of options.")
        names = option_names(command)
        options = {str(k).replace("-", "_"): v for k, v in value.items()}
        unknown = sorted(set(options) - names)
        if unknown:
            raise click.UsageError(
                f"--config {path}: unknown option(s) {', '.join(unknown)} of {key!r}; it knows "
                f"{', '.join(sorted(names))}."
            )
        out[key] = options
    return out


def option_names(command: click.Command) -> set[str]:
    return {p.name for p in command.params if isinstance(p, click.Option) and p.name}


def merge(defaults: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `defaults`, command by command."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in defaults.items()}
    for key, value in over.items():
        if isinstance(value, dict):
            merged[key] = {**merged.get(key, {}), **value}
        else:
            merged[key] = value
    return merged
