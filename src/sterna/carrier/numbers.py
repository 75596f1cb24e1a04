"""Which numbers streams have: the source opens odd ones, the target even ones, each in order."""

from __future__ import annotations

from typing import Final

from sterna.carrier.frames import MAX_STREAMS, BadFrame

LATE: Final = 2 * MAX_STREAMS  # the peer may know of an end a little earlier than we do


class Numbers:
    def __init__(self, *, lead: bool) -> None:
        self._next = 1 if lead else 2
        self._seen = 0 if lead else -1  # highest of the peer's
        self._unseen: set[int] = set()  # below it, and not come yet: frames pass each other

    def take(self) -> int:
        """For a stream of ours."""
        number = self._next
        self._next += 2
        return number

    def is_ours(self, number: int) -> bool:
        return number % 2 == self._next % 2

    def is_used(self, number: int) -> bool:
        """Whether it is, or was, the number of a stream."""
        if self.is_ours(number):
            return number < self._next
        return number <= self._seen and number not in self._unseen

    def see(self, number: int) -> None:
        """The peer uses it now. Raises BadFrame if it is not its turn by far."""
        if self.is_ours(number):
            raise BadFrame(f"stream {number}, which was never opened")
        if (number - self._seen) // 2 + len(self._unseen) > LATE:
            raise BadFrame(f"stream {number} where about {self._seen + 2} is awaited")
        self._unseen.update(range(self._seen + 2, number, 2))
        self._unseen.discard(number)
        self._seen = max(self._seen, number)
