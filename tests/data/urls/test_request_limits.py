"""The memory budget that samples fetched ahead share."""

import asyncio
import random

from rfdit.data.urls.request_limits import ByteBudget, Clock, Reservation


def test_only_samples_that_are_not_due_wait_for_room() -> None:
    async def run() -> None:
        budget = ByteBudget(10)
        await budget.take(0, 100)  # of one image that is due there may be more
        waiting = asyncio.create_task(budget.take(2, 4))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        budget.advance()
        await waiting
        await budget.take(2, 6)
        assert budget.total == 10
        late = asyncio.create_task(budget.take(3, 1))
        await asyncio.sleep(0.01)
        assert not late.done()
        Reservation(budget, 2).give_back()
        await late
        assert budget.total == 1
        budget.give_back(0)  # long gone
        assert budget.total == 1

    asyncio.run(run())


def test_any_order_of_work_ends_and_stays_within_the_budget() -> None:
    """Images of up to 8 pieces, consumed in turn, never hold more than the budget and the due one's bytes."""
    limit, places = 20, 50

    async def fetch(budget: ByteBudget, place: int, draw: random.Random) -> int:
        memory, size = Reservation(budget, place), 0
        for _ in range(draw.randint(1, 8)):
            await asyncio.sleep(0.001 * draw.random())
            await memory.take(3)
            size += 3
            assert budget.total <= limit + 24
            if draw.random() < 0.1:  # another attempt
                memory.give_back()
                size = 0
        return size

    async def run() -> None:
        budget = ByteBudget(limit)
        tasks = [asyncio.create_task(fetch(budget, n, random.Random(n))) for n in range(places)]
        for task in tasks:
            await asyncio.wait_for(task, 30)
            budget.advance()
        assert budget.total == 0

    asyncio.run(run())


def test_a_clock_stands_still_while_it_is_paused() -> None:
    async def run() -> None:
        clock = Clock(5.0)
        async with clock.running():
            with clock.paused():
                left = clock.left
                await asyncio.sleep(0.05)
            assert clock.left == left
        assert 4.0 < clock.left <= left
        clock = Clock(0.01)
        async with clock.running():
            with clock.paused():
                await asyncio.sleep(0.1)
        try:
            async with clock.running():
                with clock.paused():
                    pass
                await asyncio.sleep(60)
        except TimeoutError:
            return
        raise AssertionError("a clock that goes on after a pause must run out")

    asyncio.run(run())
