"""Progress of long work: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

logger = logging.getLogger(__name__)


def format_duration(seconds: float) -> str:
    """Seconds as "45 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Counts towards a total; use as a context manager."""

    def __init__(self, label: str, total: int, unit: str, every_seconds: float = 5.0) -> None:
        self.label, self.total, self.unit, self.every_seconds = label, total, unit, every_seconds
        self.done, self._said = 0, -1

    def __enter__(self) -> Progress:
        self._start = self._last = time.monotonic()
        self._bar = tqdm(total=self.total, desc=self.label, unit=f" {self.unit}") if sys.stderr.isatty() else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self._said < self.total:
            self._line()

    def update(self, count: int) -> None:
        """Add `count` to what is done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._last >= self.every_seconds:
            self._last = time.monotonic()
            self._line()

    def _line(self) -> None:
        self._said = self.done
        elapsed = time.monotonic() - self._start
        rate = self.done / max(elapsed, 1e-9)
        left = f"ETA {format_duration((self.total - self.done) / rate)}" if 0 < self.done < self.total else ""
        logger.info(
            "%s  %3.0f%%  %s of %s %s  %s/s  %s",
            self.label,
            100 * self.done / max(self.total, 1),
            f"{self.done:,}",
            f"{self.total:,}",
            self.unit,
            f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}",
            left,
        )
