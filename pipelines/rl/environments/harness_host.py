"""Runs programs that lead episodes, in a process of its own: `python harness_host.py '{"kind": ..., "name": ..., "arguments": {...}}'`, JSON lines in
and out. Standard library alone until the program is loaded, so that the interpreter may be that of another virtual environment.

In: {"episode": number, "row": {...}, "url": base URL} begins an episode, {"cancel": number} ends it. Out: first {"ready": true} or {"error": ...},
then for every episode {"episode": number, "reward": ..., "metrics": {...}} or {"episode": number, "error": ...}. Many are played at once.

With "rows": NUMBER beside "kind" it plays nothing: out come so many rows of the environment's own data at most, {"row": ..., "prompt": ..., "answer":
...}, a file of problems for the source `file`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import importlib
import inspect
import itertools
import json
import os
import sys
import threading
import typing

MODEL = "policy"
KEY_VARIABLE = "TOUCHSTONE_NO_KEY"
"""Unset, so that no key of the user's goes anywhere."""
SECONDS = 1e6
"""Time-out of requests: the policy may train while one waits."""
END_SECONDS = 5.0
FAILED: contextvars.ContextVar[list] = contextvars.ContextVar("failed")
"""What reward functions of the episode have raised."""


class Function:
    """A function (row, base_url, **arguments) -> reward, None, or {"reward": ..., "metrics": {...}}; a coroutine, or one that runs in a thread."""

    def __init__(self, name: str, arguments: dict) -> None:
        module, _, attribute = name.partition(":")
        self.function = functools.partial(getattr(importlib.import_module(module), attribute), **arguments)

    @contextlib.asynccontextmanager
    async def serving(self) -> typing.AsyncIterator[None]:
        """Nothing to set up."""
        yield

    async def play(self, row: dict, url: str) -> dict:
        """One episode."""
        if inspect.iscoroutinefunction(self.function.func):
            made = await self.function(row, url)
        else:
            made = await in_thread(functools.partial(self.function, row, url))
        return made if isinstance(made, dict) else {"reward": made}


async def in_thread(work: typing.Callable[[], typing.Any]) -> typing.Any:
    """What it returns. Who is cancelled waits for its end all the same: a thread cannot be stopped."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def run() -> None:
        try:
            settle, value = future.set_result, work()
        except BaseException as error:  # noqa: BLE001 -- whatever the user's code raises is told
            settle, value = future.set_exception, RuntimeError(f"{type(error).__name__}: {error}")
        loop.call_soon_threadsafe(settle, value)

    threading.Thread(target=run, daemon=True).start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        future.exception()  # nobody else asks for it, which asyncio would complain about
        raise


class Classic:
    """An environment of verifiers 0.3."""

    def __init__(self, name: str, arguments: dict) -> None:
        vf = importlib.import_module("verifiers")
        self.environment = vf.load_environment(name, **arguments)
        parts = [self.environment, *getattr(self.environment, "envs", ())]
        if any(part.requires_group_rollouts for part in parts):
            raise TypeError(f"{name} rewards whole groups, and here every episode is judged alone")
        for part in parts:
            watch(part.rubric)

    serving = Function.serving

    def row(self, given: dict) -> dict:
        """The row of its data set that `row` names, or the problem put as its rows are."""
        if "row" in given:
            return dict(self.environment.get_dataset()[given["row"]])
        environment = self.environment
        system = [{"role": "system", "content": environment.system_prompt}] if environment.system_prompt else []
        prompt = [*system, *(environment.few_shot or ()), {"role": "user", "content": given["prompt"]}]
        info = {name: value for name, value in given.items() if name not in ("prompt", "answer")}
        return {"prompt": prompt, "answer": given["answer"], "info": info, "example_id": 0}

    def rows(self) -> typing.Iterator[tuple[typing.Any, str]]:
        """Prompt and answer of each row of its data set."""
        for row in self.environment.get_dataset():
            yield row["prompt"], row.get("answer", "")

    async def play(self, row: dict, url: str) -> dict:
        """One episode. A turn that says nothing, which verifiers takes for an error, is left to the problem's verifier."""
        clients, types = importlib.import_module("verifiers.clients"), importlib.import_module("verifiers.types")
        failed: list = []
        FAILED.set(failed)
        client = clients.resolve_client(types.ClientConfig(api_base_url=url, api_key_var=KEY_VARIABLE, timeout=SECONDS, max_retries=0))
        try:
            made = await self.environment.run_rollout(self.row(row), client, MODEL, {})
        finally:
            await client.close()
        error = made.get("error")
        if error and error["error"] == "EmptyModelResponseError":
            return {}
        if error or failed:
            raise RuntimeError(f"{error['error']}: {error['message']}" if error else failed[0])
        if made.get("stop_condition") == "timeout_reached":
            raise RuntimeError("the environment's own time-out was reached, which counts the policy's time")
        return {"reward": made["reward"], "metrics": made.get("metrics") or {}}


def watch(rubric: typing.Any) -> None:
    """Note what its functions raise, which verifiers would count as 0.0."""
    rubric.funcs = [watched(function) for function in rubric.funcs]
    for part in getattr(rubric, "rubrics", ()):
        watch(part)


def watched(function: typing.Callable) -> typing.Callable:
    """The same function of the same signature."""

    @functools.wraps(function)
    async def call(*args: typing.Any, **kwargs: typing.Any) -> float:
        try:
            value = function(*args, **kwargs)
            return float(await value if inspect.isawaitable(value) else value)
        except Exception as error:
            FAILED.get([]).append(f"reward function {function.__name__} raised {type(error).__name__}: {error}")
            raise

    return call


class Tasks:
    """A taskset of verifiers 0.4 and the agent that plays it. arguments: of the environment's configuration."""

    def __init__(self, name: str, arguments: dict) -> None:
        vf = importlib.import_module("verifiers.v1")
        agent = {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}}
        config = {"agent": agent, **arguments, "taskset": {**arguments.get("taskset", {}), "id": name}}
        self.environment = vf.load_environment(vf.resolve_env_config(config))

    def serving(self) -> typing.AsyncContextManager[None]:
        """What all its episodes share."""
        return self.environment.serving()

    def task(self, given: dict) -> typing.Any:
        """The task of the set that `row` names, or one of its class made of the problem's fields."""
        taskset = self.environment.taskset
        if "row" in given:
            return next(itertools.islice(iter(taskset), given["row"], None))
        kind = type(taskset).task_type()
        data = kind.data_type()
        return kind(data(**{name: value for name, value in given.items() if name in data.model_fields}), taskset.config.task)

    def rows(self) -> typing.Iterator[tuple[typing.Any, str]]:
        """Prompt and answer of each task."""
        for task in self.environment.taskset:
            data = task.data.model_dump()
            yield data["prompt"], data.get("answer", "")

    async def play(self, row: dict, url: str) -> dict:
        """One episode of one agent."""
        vf = importlib.import_module("verifiers.v1")
        context = vf.ModelContext(MODEL, vf.EvalClientConfig(base_url=url, api_key_var=KEY_VARIABLE))
        episode = await self.environment.run_episode(self.task(row), context)
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        if errors or not episode.ok:
            raise RuntimeError(f"{errors[0].type}: {errors[0].message}" if errors else "the episode failed")
        if len(episode.traces) != 1:
            raise RuntimeError(f"{len(episode.traces)} agents have played, and one policy trains")
        (trace,) = episode.traces
        if trace.is_timeout:
            raise RuntimeError("the environment's own time-out was reached, which counts the policy's time")
        missing = [name for name, reward in trace.rewards.items() if reward is None]
        if missing:
            raise RuntimeError(f"reward {missing[0]} could not be had")
        scores = {name: reward.score for name, reward in trace.rewards.items()}
        return {"reward": trace.reward if scores else None, "metrics": {**trace.metrics, **scores}}


def text(prompt: typing.Any) -> str:
    """Of the last message, or of the last part of one."""
    if isinstance(prompt, list):
        return text(prompt[-1])
    return text(prompt.get("content") or prompt.get("text")) if isinstance(prompt, dict) else prompt or ""


KINDS = {"function": Function, "verifiers": Classic, "verifiers_v1": Tasks}


async def serve(program: typing.Any, say: typing.Callable[[dict], None]) -> None:
    """Play what is asked for until there is no input."""
    loop, closed = asyncio.get_running_loop(), asyncio.Event()
    playing: dict[int, asyncio.Task] = {}

    async def play(number: int, row: dict, url: str) -> None:
        try:
            made = await program.play(row, url)
            told = {"episode": number, "reward": made.get("reward"), "metrics": made.get("metrics")}
            json.dumps(told, default=float)
        except asyncio.CancelledError:
            told = {"episode": number, "error": "ended"}
        except Exception as error:  # noqa: BLE001 -- whatever the user's code raises is told
            told = {"episode": number, "error": f"{type(error).__name__}: {error}"[:2000]}
        del playing[number]
        say(told)

    def heard(line: str) -> None:
        request = json.loads(line)
        if "cancel" not in request:
            playing[request["episode"]] = loop.create_task(play(request["episode"], request["row"], request["url"]))
        elif (task := playing.get(request["cancel"])) is not None:
            task.cancel()

    def listen() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(heard, line)
        loop.call_soon_threadsafe(closed.set)

    async with program.serving():
        say({"ready": True})
        threading.Thread(target=listen, daemon=True).start()
        await closed.wait()
        for task in playing.values():
            task.cancel()
        if playing:
            await asyncio.wait(list(playing.values()), timeout=END_SECONDS)


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the user's code prints is no answer

    def say(told: dict) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more
            print(json.dumps(told, default=float), file=out, flush=True)

    what = json.loads(sys.argv[1])
    if "rows" in what:
        for number, (prompt, answer) in enumerate(itertools.islice(KINDS[what["kind"]](what["name"], what["arguments"]).rows(), what["rows"])):
            say({"row": number, "prompt": text(prompt), "answer": str(answer)})
        return
    try:
        program = KINDS[what["kind"]](what["name"], what["arguments"])
        asyncio.run(serve(program, say))
    except Exception as error:  # noqa: BLE001 -- likewise
        say({"error": f"{type(error).__name__}: {error}"})
    timer = threading.Timer(2 * END_SECONDS, os._exit, (0,))
    timer.daemon = True  # whatever holds the process up, it ends
    timer.start()


if __name__ == "__main__":
    main()
