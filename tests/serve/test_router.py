"""The router over real processes: outputs in order, limits, aborts, and what SIGKILL does to requests."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from colossus.serve.affinity import Known, prefix_hashes
from colossus.serve.api.generation import Reader, Task
from colossus.serve.api.generation import answer as generated
from colossus.serve.backend import Overloaded, Unavailable
from colossus.serve.calls import Call, current_call
from colossus.serve.detokenize import Stops
from colossus.serve.flight import Flight
from colossus.serve.request import Finish, Output
from colossus.serve.settings import RouterSettings
from tests.serve.clusters import answer, ask, cluster, collect, tokens, until
from tests.serve.scripted_worker import CRASH, EXIT, HANG, SEGFAULT


def is_clean(made):
    books = made.router._books
    assert not [book for book in books if book.flights or book.num_unread_tokens or book.suspect]
    return made.router.num_requests == 0 and made.router.num_outstanding_tokens == 0 and all(replica.num_work == 0 for replica in made.fleet.replicas)


def test_many_requests_get_their_own_answers(tmp_path):
    async def main():
        async with cluster(tmp_path, RouterSettings(num_replicas=2), step_tokens=3) as made:
            requests = [ask((i, 5), max_tokens=1 + i % 9, seed=i) for i in range(60)]
            outputs = await asyncio.gather(*(collect(made.router, request) for request in requests))
            assert [tokens(one) for one in outputs] == [answer(request) for request in requests]
            assert all(one[-1].finish is Finish.LENGTH for one in outputs)
            assert is_clean(made)
            assert made.measures.num_output_tokens == sum(len(answer(request)) for request in requests)
            assert all(replica.generation == 1 for replica in made.fleet.replicas)
            await until(lambda: all(replica.stats.num_output_tokens for replica in made.fleet.replicas))

    asyncio.run(main())


def test_a_closed_iterator_aborts_at_the_engine(tmp_path):
    async def main():
        async with cluster(tmp_path, token_s=0.002) as made:
            outputs = made.router.submit(ask(max_tokens=100_000))
            await outputs.__anext__()
            await until(lambda: made.fleet.replicas[0].stats and made.fleet.replicas[0].stats.num_running == 1)
            await outputs.aclose()
            assert is_clean(made)
            await until(lambda: made.fleet.replicas[0].stats.num_running == 0)
            assert made.measures.ended[Finish.ABORT] == 1

    asyncio.run(main())


def test_an_answer_that_a_stop_string_ends_counts_as_stopped(tmp_path):
    """Its engine hears of an abort, the figures and the estimates of lengths of an end."""

    class Letters:
        def push(self, tokens):
            return "ab" * len(list(tokens))

        def flush(self):
            return ""

    async def main():
        async with cluster(tmp_path, token_s=0.002) as made:
            current_call.set(Call(id="1", method="POST", route="/"))
            request = ask(max_tokens=100_000)
            task = Task(index=0, request=request, reader=Reader(Letters(), Stops(["ba"]), request=request, own_stop_ids=()))
            pieces = [piece async for piece in generated(made.router, task)]
            assert "".join(piece.text for piece in pieces) == "a" and pieces[-1].finish == "stop"
            assert is_clean(made)
            assert (made.measures.ended[Finish.STOP], made.measures.ended[Finish.ABORT]) == (1, 0)
            await until(lambda: made.fleet.replicas[0].stats.num_running == 0)

    asyncio.run(main())


def test_a_full_queue_refuses_with_a_time_to_come_back(tmp_path):
    async def main():
        settings = RouterSettings(max_running=2, max_waiting=3)
        async with cluster(tmp_path, settings, token_s=0.01, max_running=2) as made:
            running = [asyncio.create_task(collect(made.router, ask(max_tokens=20))) for _ in range(5)]
            await until(lambda: made.router.num_requests == 5)
            with pytest.raises(Overloaded, match="3 requests wait") as caught:
                await collect(made.router, ask())
            assert caught.value.retry_after_s >= 1
            await asyncio.gather(*running)
            assert tokens(await collect(made.router, request := ask())) == answer(request)
            assert is_clean(made)
            assert made.measures.num_refused == 1

    asyncio.run(main())


def test_before_the_first_engine_is_ready_nothing_is_taken(tmp_path):
    async def main():
        async with cluster(tmp_path, wait=False, start_s=0.5) as made:
            with pytest.raises(Unavailable, match="starting"):
                await collect(made.router, ask())
            with pytest.raises(Unavailable, match="starting"):
                _ = made.router.info
            await until(lambda: made.router.is_ready)
            assert made.router.info.model == "scripted"
            made.router.close("this server is ending")
            with pytest.raises(Unavailable, match="ending"):
                await collect(made.router, ask())

    asyncio.run(main())


def test_requests_that_have_not_begun_survive_a_kill(tmp_path):
    """One engine, full; the running ones have begun and end with an error, the waiting ones are answered by its successor."""

    async def main():
        async with cluster(tmp_path, token_s=0.01, max_running=2) as made:
            requests = [ask((i,), max_tokens=40) for i in range(6)]
            tasks = [asyncio.create_task(collect(made.router, request)) for request in requests]
            await until(lambda: made.measures.num_output_tokens > 4)
            made.kill(0)
            results = await asyncio.gather(*tasks)
            for request, outputs in zip(requests[2:], results[2:], strict=True):
                assert tokens(outputs) == answer(request)
            for request, outputs in zip(requests[:2], results[:2], strict=True):
                assert outputs[-1].finish is Finish.ERROR
                assert "lost after the answer had begun" in outputs[-1].error and "signal 9, perhaps because memory ran out" in outputs[-1].error
                assert tokens(outputs) == answer(request)[: len(tokens(outputs))]
            assert made.fleet.replicas[0].generation == 2
            assert is_clean(made)

    asyncio.run(main())


def test_answers_to_one_prompt_are_one_call_that_reads_it_once(tmp_path):
    async def main():
        async with cluster(tmp_path, token_s=0.005) as made:
            call = Call(id="c", method="POST", route="/v1/x")
            current_call.set(call)
            requests = [replace(ask(max_tokens=20, seed=number), shares_prompt=number > 0) for number in range(3)]
            tasks = [asyncio.create_task(collect(made.router, request)) for request in requests]
            await until(lambda: made.router.num_requests == 3)
            assert made.router.num_calls == 1
            await asyncio.gather(*tasks)
            assert call.num_prompt_tokens == len(requests[0].prompt) and call.num_output_tokens == 60

    asyncio.run(main())


def test_what_no_client_has_seen_is_computed_again(tmp_path):
    """The router delivered tokens, but the response's head is not sent (no streaming): the answer comes whole, from another engine."""

    async def main():
        async with cluster(tmp_path, RouterSettings(num_replicas=2), token_s=0.005) as made:
            call, request = Call(id="c", method="POST", route="/v1/x", owner="ann"), ask(max_tokens=60)
            current_call.set(call)
            task = asyncio.create_task(collect(made.router, request))
            await until(lambda: call.num_output_tokens > 5)
            victim = next(replica.index for replica in made.fleet.replicas if replica.num_work)
            made.kill(victim)
            outputs = await task
            assert tokens(outputs) == answer(request)
            assert outputs[-1].finish is Finish.LENGTH
            assert call.num_output_tokens == 60 and call.num_prompt_tokens == 3
            assert made.measures.num_retries == 1
            assert is_clean(made)

    asyncio.run(main())


@pytest.mark.slow
def test_fifty_kills_under_load_lose_nothing_that_had_not_begun(tmp_path):
    async def main():
        chance = random.Random(1)
        async with cluster(tmp_path, RouterSettings(num_replicas=2), token_s=0.002) as made:
            results: list[tuple[list[int], list]] = []
            stop = False

            async def client(number):
                while not stop:
                    request = ask((number, len(results)), max_tokens=chance.randint(1, 12))
                    current_call.set(Call(id="c", method="POST", route="/v1/x", begun=number % 2 == 0))
                    results.append((answer(request), await collect(made.router, request)))

            clients = [asyncio.create_task(client(number)) for number in range(16)]
            for number in range(50):
                await asyncio.sleep(chance.random() * 0.4)
                await until(lambda: made.fleet.ready)
                made.kill(chance.choice(made.fleet.ready).index)
                await until(lambda: sum(replica.num_losses for replica in made.fleet.replicas) > number)  # noqa: B023
            stop = True
            await asyncio.gather(*clients)
            lost = [(wanted, got) for wanted, got in results if got[-1].finish is Finish.ERROR]
            assert all(tokens(got) and "begun" in got[-1].error for _, got in lost)
            assert all(tokens(got) == wanted for wanted, got in results if got[-1].finish is Finish.LENGTH)
            assert len(results) > 50 and len(lost) < len(results) / 2
            assert is_clean(made)

    asyncio.run(main())


@pytest.mark.parametrize(("order", "words"), [(CRASH, "a step failed on purpose"), (SEGFAULT, "signal 11"), (EXIT, "code 7")])
def test_a_request_that_crashes_engines_is_given_up_and_harms_no_other(tmp_path, order, words):
    async def main():
        async with cluster(tmp_path) as made:
            good = [asyncio.create_task(collect(made.router, ask((5,), max_tokens=4))) for _ in range(3)]
            (end,) = await collect(made.router, ask((order,)))
            assert end.finish is Finish.ERROR and "2 engines crashed" in end.error and words in end.error
            assert all(len(tokens(outputs)) == 4 for outputs in await asyncio.gather(*good))
            assert tokens(await collect(made.router, request := ask())) == answer(request)
            assert is_clean(made)

    asyncio.run(main())


def test_an_engine_that_hangs_is_killed(tmp_path):
    async def main():
        async with cluster(tmp_path, RouterSettings(hang_s=0.5)) as made:
            (end,) = await collect(made.router, ask((HANG,)))
            assert end.finish is Finish.ERROR and "said nothing for" in end.error
            assert tokens(await collect(made.router, request := ask())) == answer(request)
            assert is_clean(made)

    asyncio.run(main())


def test_an_idle_engine_may_be_silent_for_long(tmp_path):
    async def main():
        async with cluster(tmp_path, RouterSettings(hang_s=0.2), token_s=0.01) as made:
            await collect(made.router, ask(max_tokens=1))
            await asyncio.sleep(0.6)
            await collect(made.router, ask(max_tokens=30))
            assert made.fleet.replicas[0].generation == 1

    asyncio.run(main())


def test_a_request_that_takes_too_long_is_ended(tmp_path):
    async def main():
        async with cluster(tmp_path, RouterSettings(request_timeout_s=0.2, max_running=1), token_s=0.01, max_running=1) as made:
            first, second = ask(max_tokens=10_000), ask(max_tokens=10_000)
            outputs, waited = await asyncio.gather(collect(made.router, first), collect(made.router, second))
            assert outputs[-1].finish is Finish.ABORT and "0.2 s" in outputs[-1].error and len(outputs) > 1
            assert [output.finish for output in waited] == [Finish.ABORT]
            assert is_clean(made)
            await until(lambda: made.fleet.replicas[0].stats.num_running == 0)

    asyncio.run(main())


def test_a_shared_prefix_leads_to_the_same_engine(tmp_path):
    async def main():
        async with cluster(tmp_path, RouterSettings(num_replicas=3)) as made:
            prefixes = [tuple(range(start, start + 160)) for start in (0, 200, 400)]
            places = {}
            for turn in range(9):
                prefix = prefixes[turn % 3]
                await collect(made.router, ask((*prefix, turn), max_tokens=1))
                place = next(index for index in range(3) if made.router._books[index].known.count(prefix_hashes(ask(prefix), 16)))
                assert places.setdefault(prefix, place) == place

    asyncio.run(main())


def test_known_pages_are_counted_from_the_first_and_forgotten_oldest_first(monkeypatch):
    monkeypatch.setattr("colossus.serve.affinity._MAX_KNOWN", 4)
    known = Known()
    known.remember((1, 2, 3))
    assert known.count((1, 2, 9)) == 2 and known.count((9, 2, 3)) == 0
    known.remember((1, 7))
    known.remember((8,))
    assert known.count((1,)) == 1 and known.count((2,)) == 0
    assert prefix_hashes(ask((1,) * 40, cache_salt="a"), 16) != prefix_hashes(ask((1,) * 40, cache_salt="b"), 16)
    assert len(prefix_hashes(ask((1,) * 47), 16)) == 2


def test_an_answer_that_comes_out_differently_is_an_error():
    flight = Flight(ask(), None, 0.0)
    flight.take(Output(id="x", tokens=(1, 2, 3)))
    flight.rewind()
    assert flight.take(Output(id="x", tokens=(1, 2))) is None
    fresh = flight.take(Output(id="x", tokens=(3, 4, 5)))
    assert fresh.tokens == (4, 5)
    flight.rewind()
    assert flight.take(Output(id="x", tokens=(1, 9))).finish is Finish.ERROR
