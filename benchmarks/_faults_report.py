"""What the fault tests count: cases by what became of them, and the findings, each with what would show it again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

#: A result without an error that is not the right one; the end of a command that no user should see; a command that
#: did not get to the same bytes after a fault; a former result that did not survive one; and an error that does not
#: say what happened, comes with the wrong exit code, or where there is none to make.
WRONG, TRACEBACK, NOT_RESUMED, LOST, UNCLEAR = "silent wrong", "traceback", "not resumed", "old result lost", "unclear"
KINDS = (WRONG, TRACEBACK, NOT_RESUMED, LOST, UNCLEAR)

_SIGNS = ("Traceback (most recent call last)", "defect of HashStream", "Exception ignored in", "Fatal Python error")


@dataclass
class Tally:
    """Counts of one kind of fault.

    Attributes
    ----------
    outcomes : Counter of str
        How many cases ended how; every case is counted once.
    findings : list of dict
        Cases that ended as none should: ``kind`` (one of `KINDS`) and what shows it again.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return sum(self.outcomes.values())

    def count(self, outcome: str) -> None:
        """A case that ended well."""
        self.outcomes[outcome] += 1

    def find(self, kind: str, **what: Any) -> None:
        """A case that did not."""
        self.outcomes[kind] += 1
        self.findings.append({"kind": kind, **what})

    def number(self, kind: str) -> int:
        return sum(found["kind"] == kind for found in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {"cases": self.cases, "outcomes": dict(self.outcomes), "findings": self.findings}


def is_traceback(error: str, returncode: int = 0) -> bool:
    """Whether a command ended as only a defect makes it end: not by a message, or by a crash."""
    return any(sign in error for sign in _SIGNS) or returncode in (-11, -6, -7, -8)


def summary(parts: dict[str, Tally]) -> dict[str, Any]:
    """The figures over all kinds of faults, and the parts they come from."""
    kills = parts.get("kills", Tally())
    resumed = kills.cases - sum(kills.number(kind) for kind in KINDS)
    return {
        "kills": kills.cases,
        "kills_resumed_fraction": resumed / kills.cases if kills.cases else None,
        "silent_wrong_results": sum(part.number(WRONG) for part in parts.values()),
        "tracebacks": sum(part.number(TRACEBACK) for part in parts.values()),
        "not_resumed": sum(part.number(NOT_RESUMED) for part in parts.values()),
        "old_results_lost": sum(part.number(LOST) for part in parts.values()),
        "unclear": sum(part.number(UNCLEAR) for part in parts.values()),
        "cases": sum(part.cases for part in parts.values()),
        "parts": {name: part.as_json() for name, part in parts.items()},
    }
