"""A database in SQLite to which other processes tell what they do: `apps/witness.py` writes it."""

from __future__ import annotations

import sqlite3
from pathlib import Path


class Witness:
    """Its rows, in the order in which they were written, all processes together.

    It keeps the database open to its end: the last one to close it would have to tidy up behind the others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = sqlite3.connect(path, isolation_level=None)
        # Who reads does not hold up who writes, which may be an event loop.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute(
            "CREATE TABLE seen (word TEXT NOT NULL, number TEXT NOT NULL, process INTEGER NOT NULL)"
        )

    def close(self) -> None:
        self._database.close()

    def rows(self) -> list[tuple[str, str, int]]:
        """The word, the number of the task that it was said of (or nothing), and the process."""
        return self._database.execute("SELECT * FROM seen ORDER BY rowid").fetchall()

    def numbers(self, *words: str) -> list[str]:
        """The tasks that one of these words was said of, once for each time."""
        return [number for word, number, _ in self.rows() if word in words]
