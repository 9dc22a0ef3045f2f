"""Turns on the cores: as many at once as there are, whose data have waited longest first."""

from __future__ import annotations

import threading
import time

from mimi_export.runtime.processor import usable_cores
from mimi_export.serving.turns import Turns


def waiting(turns, count):
    until = time.monotonic() + 30
    while len(turns._waiting) < count and time.monotonic() < until:
        time.sleep(0.001)


def test_one_at_a_time_and_the_oldest_first():
    turns, order, inside = Turns(1), [], []

    def work(since):
        with turns.turn(since):
            inside.append(since)
            assert len(inside) == 1
            order.append(inside.pop())

    threads = [threading.Thread(target=work, args=(since,)) for since in (3.0, 1.0, 2.0, 1.0)]
    with turns.turn(9.0):
        for thread in threads:
            thread.start()
        waiting(turns, 4)
        assert order == []
    for thread in threads:
        thread.join(30)
    assert order == [1.0, 1.0, 2.0, 3.0]


def test_as_many_as_there_are_cores():
    turns, both = Turns(2), threading.Barrier(2, timeout=30)

    def work():
        with turns.turn(0.0):
            both.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not both.broken
    assert usable_cores() >= 1


def test_a_turn_ends_with_an_error():
    turns = Turns(1)
    try:
        with turns.turn(0.0):
            raise ValueError
    except ValueError:
        pass
    with turns.turn(0.0):
        pass
