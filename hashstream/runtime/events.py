"""Progress as events: the engine reports, a listener shows; the engine knows no progress bar."""

from __future__ import annotations

from typing import Protocol


class ProgressListener(Protocol):
    """What a stage tells while it works."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins; `total` units of work lie ahead."""

    def advance(self, n: int) -> None:
        """`n` more units are done."""

    def finish(self) -> None:
        """The stage ended, well or not."""

    def note(self, message: str) -> None:
        """Something a user should know."""


class Silent:
    """The listener that shows nothing."""

    def start(self, stage: str, total: int, unit: str) -> None: ...

    def advance(self, n: int) -> None: ...

    def finish(self) -> None: ...

    def note(self, message: str) -> None: ...
