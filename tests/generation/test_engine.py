"""Episodes that ask one policy for turns: who waits for whom, and that no clock decides what is sampled."""

import asyncio
import random
from contextlib import nullcontext

import pytest
from generation.test_torch_engine import TOKENIZER, model

from pipelines.config.common import GenerationSettings
from pipelines.generation import Engine, Request, ScriptedGenerator, TorchGenerator, torch_engine

SETTINGS = GenerationSettings(max_new_tokens=12, batch_size=4)


def prompts(count: int) -> list[tuple[int, ...]]:
    return [tuple(5 + (7 * n + k) % 40 for k in range(3 + n % 4)) for n in range(count)]


def room(number: int, turn: int) -> int:
    """Turns of many lengths."""
    return 3 + (5 * number + turn) % 10


async def ask(engine: Engine, prompt, number: int, turns: int, pause=None) -> list[list[int]]:
    """Several turns, each of which follows the ids of those before."""
    ids, said = list(prompt), []
    for turn in range(turns):
        made = await engine.sample(ids, ("k", number, turn), room(number, turn))
        said.append(made.segment.ids)
        ids = [*ids, *made.segment.ids, 6]
        if pause:
            await asyncio.sleep(pause.random() / 200)
    return said


def test_turns_of_one_episode_are_those_of_the_policy_asked_alone():
    generator = TorchGenerator(model(), TOKENIZER, SETTINGS)
    made = Engine(generator).run([ask(Engine(generator), p, n, 0) for n, p in enumerate(prompts(2))])
    assert made == [[], []]
    engine = Engine(generator)
    made = engine.run([ask(engine, p, n, 1 + n % 3) for n, p in enumerate(prompts(9))])
    for n, prompt in enumerate(prompts(9)):
        ids = list(prompt)
        for turn, said in enumerate(made[n]):
            (alone,) = generator.generate([Request(tuple(ids), 1, ("k", n), first=turn, limit=room(n, turn))])[0]
            assert alone.token_ids == said
            ids = [*ids, *said, 6]
    assert [len(said) for said in made] == [1 + n % 3 for n in range(9)]


def test_greedy_turns_among_sampled_ones_say_the_likeliest_tokens():
    """Those of an engine at temperature 0; the sampled ones say what they say without greedy ones beside them."""
    generator = TorchGenerator(model(), TOKENIZER, SETTINGS)
    coldest = TorchGenerator(model(), TOKENIZER, SETTINGS.model_copy(update={"temperature": 0.0}))

    async def both(engine: Engine, prompt, number: int) -> list:
        return await engine.together([(engine.greedy if part else engine).sample(prompt, ("k", number, part)) for part in range(2)])

    engine = Engine(generator)
    made = engine.run([both(engine, p, n) for n, p in enumerate(prompts(5))])
    alone = generator.generate([Request(p, 1, ("k", n)) for n, p in enumerate(prompts(5))])
    greedy = coldest.generate([Request(p, 1, ("k", n)) for n, p in enumerate(prompts(5))])
    assert [sampled.segment.ids for sampled, _ in made] == [sample.token_ids for (sample,) in alone]
    assert [likeliest.segment.ids for _, likeliest in made] == [sample.token_ids for (sample,) in greedy]
    assert all(set(likeliest.segment.logp) == {0.0} for _, likeliest in made)


def test_no_clock_decides_what_decodes_together():
    """Episodes pause for random times between turns; every run decodes the same batches, in rows of the same order."""

    def run(seed: int) -> tuple[list, list]:
        generator = TorchGenerator(model(), TOKENIZER, SETTINGS)
        batches = []
        real = generator._decoder.step

        def seen(ids, lengths, cache):
            batches.append((ids.tolist(), lengths.tolist()))
            return real(ids, lengths, cache)

        generator._decoder.step = seen
        engine = Engine(generator)
        pause = random.Random(seed)
        return engine.run([ask(engine, p, n, 1 + n % 3, pause) for n, p in enumerate(prompts(9))]), batches

    first, second = run(1), run(2)
    assert first[0] == second[0] and first[1] == second[1]


def test_a_limit_ends_a_turn_and_is_the_beginning_of_the_longer_one():
    generator = TorchGenerator(model(), TOKENIZER, SETTINGS)
    engine = Engine(generator)

    async def both() -> list:
        return await engine.together([engine.sample(prompts(1)[0], ("k", 1), limit) for limit in (4, None)])

    ((short, long),) = engine.run([both()])
    assert short.segment.ids == long.segment.ids[:4] and short.finish_reason == "length" and len(long.segment.ids) > 4
    assert short.segment.versions == [0] * 4 and short.segment.trains and short.segment.author == "policy"


def scripted(text: str = "1") -> ScriptedGenerator:
    return ScriptedGenerator(TOKENIZER, SETTINGS, lambda request, number: text)


def test_parts_run_side_by_side_in_one_batch():
    generator = scripted()
    asked = []
    real = generator.generate
    generator.generate = lambda requests, progress=None: asked.append(len(requests)) or real(requests, progress)  # type: ignore[method-assign]
    engine = Engine(generator)

    async def group(number: int) -> int:
        first = await engine.together([ask(engine, (5, 6), 10 * number + part, 1) for part in range(3)])
        second = await engine.together([ask(engine, (5, 6), 10 * number + part, 1) for part in range(number)])
        return len(first) + len(second)

    assert engine.run([group(n) for n in range(4)]) == [3, 4, 5, 6]
    assert asked == [12, 6]


def test_a_failure_ends_all():
    generator, engine = scripted(), None
    engine = Engine(generator)

    async def fails() -> None:
        await engine.sample((5, 6), ("k", 1))
        raise ZeroDivisionError

    async def goes_on() -> None:
        for turn in range(10**6):
            await engine.sample((5, 6), ("k", 2, turn))

    with pytest.raises(ZeroDivisionError):
        engine.run([goes_on(), fails()])

    async def hidden() -> None:
        await asyncio.gather(engine.sample((5, 6), ("k", 1)))

    engine = Engine(generator)
    with pytest.raises(RuntimeError, match="engine.together"):
        engine.run([hidden()])


def test_progress_counts_turns_and_may_stop_all():
    told = []
    generator = TorchGenerator(model(), TOKENIZER, SETTINGS)
    engine = Engine(generator, lambda done, total: told.append((done, total)))
    engine.run([ask(engine, p, n, 2) for n, p in enumerate(prompts(5))])
    assert told[-1] == (10, 10) and [done for done, _ in told] == sorted(done for done, _ in told)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    engine = Engine(generator, stop)
    with pytest.raises(KeyboardInterrupt):
        engine.run([ask(engine, p, n, 2) for n, p in enumerate(prompts(5))])


@pytest.mark.parametrize("every", [1, 3])
def test_interrupted_turns_go_on_as_if_they_had_not_been(every):
    def run(interrupted: bool) -> tuple[list, list]:
        generator = TorchGenerator(model(), TOKENIZER, SETTINGS)
        with Engine(generator) as engine:
            tasks = [engine.begin(ask(engine, p, n, 1 + n % 3)) for n, p in enumerate(prompts(9))]
            rounds = 0

            def enough() -> bool:
                nonlocal rounds
                rounds += 1
                return interrupted and rounds % (every + 1) == 0

            while not all(task.done() for task in tasks):
                engine.advance(enough)
                engine.interrupt()
            return [task.result() for task in tasks], engine.said

    whole, _ = run(interrupted=False)
    parts, said = run(interrupted=True)
    assert parts == whole
    assert any(not each.finish_reason and each.ids for each in said), "nothing was interrupted"


def test_tokens_carry_the_version_of_the_weights_that_sampled_them():
    generator = TorchGenerator(model(), TOKENIZER, SETTINGS)
    with Engine(generator) as engine:
        tasks = [engine.begin(engine.sample(p, ("k", n), room(n, 0))) for n, p in enumerate(prompts(9))]
        rounds = iter([False, True, False, True])
        engine.advance(lambda: next(rounds))
        engine.interrupt()
        generator.push(model(), 1)
        engine.advance(lambda: False)
        versions = [task.result().segment.versions for task in tasks]
    assert {version for each in versions for version in each} == {0, 1}
    assert all(each == sorted(each) for each in versions) and any(len(set(each)) == 2 for each in versions)


def test_what_was_said_is_not_sampled_again():
    """An engine that is given what an earlier one was told, of turns that ended and of one that did not, comes to the same end."""
    generator = TorchGenerator(model(), TOKENIZER, SETTINGS)
    with Engine(generator) as engine:
        for n, p in enumerate(prompts(9)):
            engine.begin(ask(engine, p, n, 2))
        rounds = iter([False, False, True])
        engine.advance(lambda: next(rounds))
        engine.interrupt()
        said = list(engine.said)
    fresh = Engine(generator)
    whole = fresh.run([ask(fresh, p, n, 2) for n, p in enumerate(prompts(9))])
    asked = []
    real = torch_engine._Rows.answer

    class Counted(torch_engine._Rows):
        def answer(self, requests=()):
            asked.extend(requests)
            return real(self, requests)

    generator.open = lambda: nullcontext(Counted(generator))  # type: ignore[method-assign]
    again = Engine(generator, said=said)
    assert again.run([ask(again, p, n, 2) for n, p in enumerate(prompts(9))]) == whole
    ended = {each.key for each in said if each.finish_reason}
    assert ended and not any((*request.key, request.first) in ended for request in asked)
    assert any(request.said for request in asked)


def test_what_is_under_way_longest_goes_first():
    """Interrupted turns, whose starts are the longest, and what waited with them, before episodes of a higher order."""
    generator, ended = TorchGenerator(model(), TOKENIZER, SETTINGS), []

    async def one(engine: Engine, prompt, number: int) -> None:
        await engine.sample(prompt, ("k", number), 12)
        ended.append(number)

    with Engine(generator) as engine:
        for n, p in enumerate(prompts(8)):
            engine.begin(one(engine, [*p, *p, *p], n), order=0)
        engine.advance(lambda: bool(ended))
        engine.interrupt()
        for n, p in enumerate(prompts(8), 8):
            engine.begin(one(engine, p, n), order=1)
        engine.advance(lambda: False)
    assert sorted(ended) == list(range(16))
    assert max(ended.index(n) for n in range(8)) < 8 + SETTINGS.batch_size - 1  # others only in rows that they leave free


def test_an_episode_that_is_given_up_holds_nobody():
    generator = TorchGenerator(model(), TOKENIZER, SETTINGS)
    with Engine(generator) as engine:
        kept = engine.begin(ask(engine, prompts(1)[0], 0, 2))
        left = engine.begin(engine.together([ask(engine, p, n, 3) for n, p in enumerate(prompts(4), 1)]))
        rounds = iter([False, True])
        engine.advance(lambda: next(rounds))
        engine.interrupt()
        left.cancel()
        engine.advance(lambda: False)
        assert kept.done() and left.cancelled()
    alone = Engine(generator)
    assert alone.run([ask(alone, prompts(1)[0], 0, 2)]) == [kept.result()]
