"""One waiter in each round of the event loop, in order, and nobody forgotten."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from colossus.serve.turns import Turns


@given(leaving=st.lists(st.booleans(), min_size=1, max_size=40))
def test_one_a_round_in_order_without_those_who_left(leaving: list[bool]) -> None:
    """In several storms: the turns are free again after each."""

    async def main() -> None:
        turns, rounds = Turns(), 0

        async def clock() -> None:
            nonlocal rounds
            while True:
                rounds += 1
                await asyncio.sleep(0)

        async def wait(number: int) -> None:
            await turns.take()
            went.append((number, rounds))

        ticking = asyncio.create_task(clock())
        for _ in range(3):
            went: list[tuple[int, int]] = []
            tasks = [asyncio.create_task(wait(number)) for number in range(len(leaving))]
            await asyncio.sleep(0)
            for task, leaves in zip(tasks, leaving, strict=True):
                if leaves:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            stayed = [number for number, leaves in enumerate(leaving) if not leaves or number == 0]
            assert [number for number, _ in went] == stayed
            at = [at for _, at in went]
            assert len(set(at)) == len(at)
        ticking.cancel()

    asyncio.run(main())
