"""slots.py: how many calls are in flight, and how the number follows what a server bears."""

import asyncio

import pytest

from judges.slots import Slots


def most_at_once(slots, tasks):
    """The largest number of tasks that were within at once."""
    within = []

    async def task():
        async with slots:
            within.append(slots.used)
            await asyncio.sleep(0)

    async def run():
        await asyncio.gather(*(task() for _ in range(tasks)))

    asyncio.run(run())
    return max(within)


@pytest.mark.parametrize(
    ("falls", "size"),
    [
        ([0] * 16, 8),  # begun under one number
        ([0, 1], 4),
        ([0, 1, 0, 0], 4),  # begun before
        (range(20), 1),  # and never none
    ],
)
def test_timeouts_of_calls_begun_together_halve_the_number_once(falls, size):
    slots = Slots(16)
    for number in falls:
        slots.timed_out(number)
    assert slots.size == size and most_at_once(slots, 20) == size


def test_answers_bring_it_back_by_one_a_round_and_no_further_than_it_was():
    slots = Slots(6)
    slots.timed_out(0)
    for _ in range(4):
        slots.answered()
    assert 4 <= slots.size < 4.5
    for _ in range(100):
        slots.answered()
    assert slots.size == 6 and most_at_once(slots, 20) == 6


def test_a_call_that_is_cancelled_while_it_waits_takes_no_slot():
    slots = Slots(1)

    async def run():
        async with slots:
            waiting = asyncio.create_task(slots.__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        async with slots:
            return slots.used

    assert asyncio.run(asyncio.wait_for(run(), 20)) == 1
