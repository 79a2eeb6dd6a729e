"""How many calls are in flight at a judge server: fewer when it has too many, more after answers.

A server that is asked too much at once answers nothing in time, and every call that is repeated
then makes it worse. So the number is halved when a call times out or the server says that it has
too many, at most once for the calls that were begun under one number, and grows by one with each
round of answers, up to the given one.

    slots = Slots(16)
    async with slots as number: ...         # waits until a call may begin
    slots.timed_out(number)                 # or slots.answered()
"""

import asyncio


class Slots:
    """A semaphore of an asyncio loop, whose size follows what the server bears."""

    def __init__(self, most: int):
        self.most, self.size, self.used, self.falls = most, float(most), 0, 0
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> int:
        async with self._changed:
            await self._changed.wait_for(lambda: self.used < int(self.size))
            self.used += 1
        return self.falls

    async def __aexit__(self, *_) -> None:
        async with self._changed:
            self.used -= 1
            self._changed.notify(max(0, int(self.size) - self.used))

    def timed_out(self, falls: int) -> None:
        """falls: what entering gave: of calls that were begun together, the first one counts."""
        if falls == self.falls:
            self.size, self.falls = max(1.0, self.size / 2), self.falls + 1

    def answered(self) -> None:
        self.size = min(float(self.most), self.size + 1 / self.size)
