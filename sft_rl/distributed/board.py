"""News between learners and their driver, in a process of its own that imports nothing for it."""

from __future__ import annotations

import asyncio
from typing import Any


class Board:
    """Where the leading learner leaves news for the driver, and the driver the notice to stop."""

    def __init__(self) -> None:
        self._news: list[tuple[str, tuple[Any, ...]]] = []
        self._stop = asyncio.Event()

    async def tell(self, kind: str, *what: Any) -> None:
        """Leave news; of progress only the newest counts."""
        if kind == "progress" and self._news and self._news[-1][0] == kind:
            self._news.pop()
        self._news.append((kind, what))

    async def news(self) -> list[tuple[str, tuple[Any, ...]]]:
        """Take what was left since the last call."""
        news, self._news = self._news, []
        return news

    async def stop(self) -> None:
        """Ask the learners to save and leave."""
        self._stop.set()

    async def stopped(self) -> None:
        """Return when the learners are asked to leave."""
        await self._stop.wait()
