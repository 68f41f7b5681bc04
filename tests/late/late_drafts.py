"""A late device with a drafter: what it said is known before it has drafted, and most of its drafts are right.

The drafter's KV lies in the same blocks, behind the model's. It is that of the same tokens, so that a row is seen which
the drafter never wrote, or somebody else did: it costs no wrong token, only drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from late_device import (
    BLOCK_TOKENS,
    BLOCKS,
    DRAFTS,
    MAX_TOKENS,
    VOCABULARY,
    Group,
    LateDevice,
    Part,
    cell_after,
    chain,
    token_after,
)

_OF_DRAFTER = 0x5555


class DraftingDevice(LateDevice):
    """As the V2 runner: how many tokens are computed, and the drafts, it knows by itself; the scheduler has
    placeholders."""

    def __init__(self, groups: Sequence[Group], zeroes: bool) -> None:
        super().__init__(groups, zeroes=False)  # rejected drafts lie behind the last token
        self.kv = np.zeros((BLOCKS, 2 * BLOCK_TOKENS), dtype=np.uint64)
        self.accepted = 0
        self.stale: set[tuple[str, int]] = set()
        """Rows of the drafter's KV that were not what it had to find: request and position."""
        self._to_draft: list[tuple[Part, int, int]] = []

    def run_next(self) -> None:
        self.draft()
        super().run_next()

    def draft(self) -> None:
        """For all of the last step, if that was not done yet."""
        while self._to_draft:
            self._draft(*self._to_draft.pop(0))

    def _run(self, part: Part) -> list[int]:
        row, begin, end = part.row, part.begin, part.end
        said = super()._run(part)
        if said:
            said += self._verified(part, end)
        self._to_draft.append((part, begin, len(row.tokens) - 1 if said else end))
        return said

    def _verified(self, part: Part, position: int) -> list[int]:
        """What the drafts after the first token are good for. All are computed, the wrong ones, too."""
        row = part.row
        drafts, row.drafts = (row.drafts + [VOCABULARY] * part.drafts)[: part.drafts], []
        before, right = self._cell(part, 0, position - 1), True
        said: list[int] = []
        for n, draft in enumerate(drafts):
            before = self._compute(part, position + n, draft, before, n + 1)
            right = right and draft == row.tokens[-1]
            if right:
                row.tokens.append(token_after(before))
                said.append(row.tokens[-1])
        row.accepted = len(said)
        self.accepted += row.accepted
        return said

    def _draft(self, part: Part, begin: int, end: int) -> None:
        """Reads the rows before `begin`, writes those to `end`, and those of its drafts."""
        row = part.row
        cells = chain(row.tokens, row.cells)
        for position in range(begin):
            if self._drafted_row(part, position) != cells[position] ^ _OF_DRAFTER:
                self.stale.add((row.name, position))
        for position in range(begin, end):
            self._draft_row(part, position, cells[position])
        if end == len(row.tokens) - 1:
            row.drafts = self._drafts(part, end)

    def _drafts(self, part: Part, position: int) -> list[int]:
        """Some right ones, and then wrong ones."""
        cell = part.row.cells[position]
        good, drafts = (cell >> 20) % (DRAFTS + 1), []
        for n in range(DRAFTS):
            if position + n < MAX_TOKENS:
                self._draft_row(part, position + n, cell)
            token = token_after(cell)
            drafts.append(token if n < good else (token + 1) % VOCABULARY)
            cell = cell_after(cell, token)
        return drafts

    def _drafted_row(self, part: Part, position: int) -> int:
        return int(self.kv[part.tables[0][position // BLOCK_TOKENS], BLOCK_TOKENS + position % BLOCK_TOKENS])

    def _draft_row(self, part: Part, position: int, cell: int) -> None:
        block = part.tables[0][position // BLOCK_TOKENS]
        self.kv[block, BLOCK_TOKENS + position % BLOCK_TOKENS] = cell ^ _OF_DRAFTER
