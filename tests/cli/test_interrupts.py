"""Ctrl-C at the moments at which Python would swallow it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, time, weakref
from hashstream.cli.interrupts import interrupts_that_count
from hashstream.runtime.steady_file import SteadyFile
{before}

def send():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # the signal is looked for between instructions
        pass

class Finalised:
    def __del__(self):
        send()

class Offset:
    def __radd__(self, start):
        send()
        return start

class Dropped:
    pass

dropped = Dropped()
weakref.finalize(dropped, send).atexit = False
try:
    with interrupts_that_count():
        {act}
        time.sleep(1)
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted")
"""


def run(handler: str, act: str) -> tuple[str, str]:
    script = SCRIPT.format(before=f"signal.signal(signal.SIGINT, {handler})", act=act)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize("act", ["del dropped", "Finalised()", "send()"])
def test_an_interrupt_is_never_lost(act: str) -> None:
    assert run("signal.default_int_handler", act) == ("interrupted\n", "")


def test_hdf5_is_let_write_on() -> None:
    """It may be writing at the end of an array, where it would swallow an interrupt."""
    act = "SteadyFile(os.devnull).seek(Offset()); print('written')"
    assert run("signal.default_int_handler", act) == ("written\ninterrupted\n", "")


def test_at_the_end_of_the_process_there_is_no_traceback() -> None:
    script = """
import atexit, os, signal
from hashstream.cli.interrupts import interrupts_that_count
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
with interrupts_that_count():
    pass
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_what_is_ignored_stays_ignored() -> None:
    assert run("signal.SIG_IGN", "send()") == ("not interrupted\n", "")
