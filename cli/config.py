"""Configuration files: packaged defaults, a user's YAML over them, unknown keys refused.

Keys are the long names of options, with dashes or underscores.

Precedence, highest first: command line, environment (HASHSTREAM_*), the file given with --config, the defaults.
"""

from __future__ import annotations

import reprlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

_NUMBERS = (click.types.IntParamType, click.types.FloatParamType)


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
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise click.UsageError(f"--config {path}: cannot be read as YAML ({error}).") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise click.UsageError(f"--config {path}: expected a mapping of commands to options.")
    own = {name: option for name, option in options_by_name(group).items() if name != "config"}
    out: dict[str, Any] = {}
    for raw_key, value in content.items():
        key = str(raw_key).replace("-", "_")
        command = group.commands.get(key.replace("_", "-"))
        if command is not None:
            out[str(command.name)] = _options_of(path, command, value)
        elif key == "dataset":
            out[key] = value
        elif key in own:
            _check_value(f"--config {path}: {shown(key)!r}", own[key], value)
            out[key] = value
        else:
            known = ", ".join(sorted([*group.commands, *(shown(name) for name in own)]))
            raise click.UsageError(f"--config {path}: unknown key {raw_key!r}; expected one of {known}.")
    return out


def _options_of(path: Path, command: click.Command, content: Any) -> dict[str, Any]:
    """The options that a file gives a command, by name; one that is empty is not given."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise click.UsageError(f"--config {path}: {command.name!r} must be a mapping of options.")
    known = options_by_name(command)
    options: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name in options:
            raise click.UsageError(f"--config {path}: {shown(name)!r} of {command.name!r} is there twice.")
        if value is not None:
            options[name] = value
    unknown = sorted({str(key).replace("-", "_") for key in content} - set(known))
    if unknown:
        raise click.UsageError(
            f"--config {path}: unknown option(s) {', '.join(map(shown, unknown))} of {command.name!r}; it knows "
            f"{', '.join(sorted(map(shown, known)))}."
        )
    for name, value in options.items():
        takes_list = known[name].multiple or known[name].nargs != 1
        several = value if takes_list and isinstance(value, list) else [value]
        for one in several:
            _check_value(f"--config {path}: {shown(name)!r} of {command.name!r}", known[name], one)
        if known[name].multiple:
            options[name] = several
    return options


def _check_value(where: str, option: click.Option, value: Any) -> None:
    """Raise UsageError for a value of a kind that the option cannot have; what it says, click looks at."""
    if option.is_flag:
        expected = None if isinstance(value, bool) else "true or false"
    elif isinstance(value, bool) or not isinstance(value, str | int | float):
        expected = "one number" if isinstance(option.type, _NUMBERS) else "one word"
    else:
        whole = option.count or isinstance(option.type, click.types.IntParamType)
        expected = "a whole number" if whole and isinstance(value, float) and not value.is_integer() else None
    if expected is not None:  # what YAML's references make may be endless
        raise click.UsageError(
            f"{where} is {value if isinstance(value, str) else reprlib.repr(value)}; expected {expected}."
        )


def options_by_name(command: click.Command) -> dict[str, click.Option]:
    """The options that a file or the environment may set.

    Each is called as on the command line: ``--n-clusters`` is the key ``n-clusters`` or ``n_clusters``, and
    HASHSTREAM_CLUSTER_N_CLUSTERS in the environment.
    """
    return {str(p.name): p for p in command.params if isinstance(p, click.Option) and p.expose_value}


def shown(name: str) -> str:
    """An option's name as it stands on the command line, without the dashes before it."""
    return name.replace("_", "-")


def merge(defaults: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `defaults`, command by command."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in defaults.items()}
    for key, value in over.items():
        if isinstance(value, dict):
            merged[key] = {**merged.get(key, {}), **value}
        else:
            merged[key] = value
    return merged
