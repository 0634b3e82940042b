"""What goes wrong on a worker: run there, so this imports next to nothing itself."""

from __future__ import annotations

import os
import signal
from typing import Any


def die_at(name: str, after: bool = False) -> None:
    """Have this process killed at its next call of a function or method of `workdir`, before or after it."""
    from hashstream.stages import workdir

    owner: Any = workdir.WorkDir if hasattr(workdir.WorkDir, name) else workdir
    real = getattr(owner, name)

    def die(*args: Any, **options: Any) -> None:
        if after:
            real(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, die)


def blind(message: str | None) -> None:
    """Have this process see no atlas; None: see them again."""
    import hashstream.atlas
    from hashstream.errors import InputError
    from hashstream.stages import distribute_worker

    def not_here(*_: Any, **__: Any) -> None:
        raise InputError(str(message))

    opener: Any = hashstream.atlas.open_atlas if message is None else not_here
    distribute_worker.open_atlas = opener
