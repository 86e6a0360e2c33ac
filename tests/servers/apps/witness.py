"""What the apps and their tasks do, told to the test: `tests/servers/witness.py` makes the database."""

from __future__ import annotations

import contextlib
import os
import sqlite3

WITNESS = os.environ["WITNESS"]


def note(word: str, number: str = "") -> None:
    """Write a row; it is there to stay when this returns, from whatever process or thread.

    :param number: the task that the word is said of.
    """
    with contextlib.closing(sqlite3.connect(WITNESS, timeout=10, isolation_level=None)) as database:
        # What a process has written outlives it; only the machine's own end would take it along.
        database.execute("PRAGMA synchronous = OFF")
        database.execute("INSERT INTO seen VALUES (?, ?, ?)", (word, number, os.getpid()))
