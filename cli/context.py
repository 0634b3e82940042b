"""What every command knows: seed, verbosity, and how to print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import click


@dataclass
class Session:
    """Global options, and the two channels: data on stdout, everything else on stderr."""

    seed: int = 0
    verbose: bool = False
    quiet: bool = False
    json: bool = False
    argv: list[str] = field(default_factory=list)

    def listener(self) -> TerminalProgress:
        return TerminalProgress(quiet=self.quiet)

    def show_path(self, path: Path, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Print where a result lies; as JSON with what there is to say about it."""
        if self.json:
            self.show({"path": str(path), **facts()})
        else:
            click.echo(path)

    def say(self, message: str) -> None:
        """A line for the human, on stderr."""
        if not self.quiet:
            click.echo(message, err=True)

    def show(self, data: dict[str, Any], *, as_json: bool = False) -> None:
        """The result, on stdout."""
        if self.json or as_json:
            click.echo(json.dumps(data, indent=1, default=str))
        else:
            _show_words(data, "")


class TerminalProgress:
    """Shows the engine's events: a bar with rate and time left on a terminal, notes as lines."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._bar: Any = None

    def start(self, stage: str, total: int, unit: str) -> None:
        if self._quiet or not self._stream.isatty():
            return
        from tqdm import tqdm

        self._bar = tqdm(
            total=total, desc=stage, unit=f" {unit}", unit_scale=True, file=self._stream, mininterval=0.2, leave=False
        )

    def advance(self, n: int) -> None:
        if self._bar is not None:
            self._bar.update(n)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def note(self, message: str) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            click.echo(message, file=self._stream)


def _show_words(data: dict[str, Any], indent: str) -> None:
    width = max((len(str(key)) for key in data), default=0)
    for key, value in data.items():
        if isinstance(value, dict):
            click.echo(f"{indent}{key}")
            _show_words(value, indent + "  ")
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            click.echo(f"{indent}{key}")
            for row in value:
                click.echo(f"{indent}  " + "  ".join(f"{name} {_word(entry)}" for name, entry in row.items()))
        else:
            click.echo(f"{indent}{key!s:<{width}}  {_word(value)}")


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(_word, value)) or "-"
    return "-" if value is None else str(value)
