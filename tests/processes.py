"""Start the command line in a process of its own."""

from __future__ import annotations

import signal


def interruptible() -> None:
    """For ``preexec_fn``: a shell that runs tests in the background has them ignore SIGINT, which children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
