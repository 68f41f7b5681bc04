"""The classes that front ends go by once their file was read again: a copy in the private folder of the server.

A front end that is restarted begins with it, whatever has become of the file that it was read from.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from llumnix.policy.classes import Classes
from llumnix.whole_file import write_whole


class ClassesInForce:
    def __init__(self, run_dir: str) -> None:
        self._path = Path(run_dir) / "classes"

    def read(self) -> Classes | None:
        """None: those that the server was started with. Never one that is half written."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Classes)
        except FileNotFoundError:
            return None

    def write(self, classes: Classes) -> None:
        write_whole(self._path, msgspec.json.encode(classes))
