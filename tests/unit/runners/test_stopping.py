"""SIGTERM as a question, and kept from the processes that the training needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from rlinf_vlm.runners import stopping
from rlinf_vlm.runners.stopping import GracefulStop, sheltered


class Ended(Exception):
    """What SIGTERM did before."""


def end(number: int, frame: object) -> None:
    raise Ended


@pytest.fixture
def stop():
    before = signal.signal(signal.SIGTERM, end)
    stop = GracefulStop()
    stop.listen()
    yield stop
    stop.restore()
    signal.signal(signal.SIGTERM, before)


def test_two_at_once_are_one_question(stop):
    """As ``timeout`` sends them: to the process, then to its group."""
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert stop.asked


def test_a_second_one_ends_the_run(stop, monkeypatch):
    monkeypatch.setattr(stopping, "TOGETHER_S", -1.0)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Ended):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is end


def test_sheltered_processes_do_not_take_it_and_it_is_not_lost(stop):
    code = "import sys; print('up', flush=True); sys.stdin.readline()"
    with sheltered():
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked
    assert child.stdout.readline() == "up\n"
    child.send_signal(signal.SIGTERM)
    assert child.communicate("end\n", timeout=30) == ("", None) and child.returncode == 0
