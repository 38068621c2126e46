"""Environments of other projects, each in a virtual environment of its own: verifiers 0.3 and 0.4, and a server of OpenEnv.

`make install-harnesses` makes those; TOUCHSTONE_VERIFIERS_03, TOUCHSTONE_VERIFIERS_04 and TOUCHSTONE_OPENENV name other interpreters. Without one its
tests are skipped.
"""

import json
import os
import re
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from kills import IN_FLIGHT, killed, left, other
from loops import TOKENIZER, run
from playing import groups, problem

from pipelines import paths
from pipelines.config.common import GenerationSettings
from pipelines.config.rl import ScheduleSettings
from pipelines.config.sources import FileSource
from pipelines.errors import UserError
from pipelines.rl.environments import Harness, OpenEnv
from pipelines.rl.environments.harness import HOST
from pipelines.sources import SOURCES
from pipelines.store import read_trajectories

ROOT = Path(__file__).parents[2]
ROOMY = GenerationSettings(max_new_tokens=128)
ROWS = [problem(verifier_args='{"row": 0}'), problem("2", verifier_args='{"row": 1}')]
CALL = '<tool_call>{"name": "double", "arguments": {"number": 3}}</tool_call>'


def interpreter(variable: str, folder: str) -> str:
    python = Path(os.environ.get(variable) or ROOT / folder / "bin" / "python")
    if not python.exists():
        pytest.skip(f"no interpreter {python}: `make install-harnesses` makes it, or {variable} names another")
    return str(python)


def played(script, environment, problems=ROWS, count: int = 1):
    return [t for group in groups(script, problems, environment, settings=ROOMY, count=count) for t in group]


CLASSIC = '''
import verifiers as vf
from datasets import Dataset

def right(completion, answer):
    return 1.0 if answer in completion[-1]["content"] else 0.0

async def length(completion):
    return float(len(completion))

def raising(completion):
    raise ZeroDivisionError("by nobody")

def words(completion):
    return "many"

def whole(completions, **kwargs):
    return [1.0 for _ in completions]

def double(number: int) -> int:
    """Twice a number.

    Args:
        number: which
    """
    return 2 * number

class Again(vf.MultiTurnEnv):
    async def env_response(self, messages, state, **kwargs):
        if "down" in messages[-1]["content"]:
            raise vf.ToolError("the tool is down")
        if "bug" in messages[-1]["content"]:
            raise KeyError("a bug")
        return [{"role": "user", "content": "no"}]

    @vf.stop
    async def found(self, state):
        return bool(state["trajectory"]) and state["answer"] in state["trajectory"][-1]["completion"][-1]["content"]

def load_environment(kind, metric=None, **settings):
    rubric = vf.Rubric(funcs=[whole if metric == "whole" else right])
    rubric.add_metric(length)
    if metric in ("raising", "words"):
        rubric.add_metric({"raising": raising, "words": words}[metric])
    rows = Dataset.from_list([{"question": f"What is {n}?", "answer": str(n)} for n in (651, 2)])
    if kind == "tools":
        return vf.ToolEnv(tools=[double], dataset=rows, rubric=rubric, **settings)
    return {"single": vf.SingleTurnEnv, "again": Again}[kind](dataset=rows, rubric=rubric, **settings)
'''


@pytest.fixture
def classic(tmp_path, monkeypatch):
    """Makes an environment of verifiers 0.3."""
    (tmp_path / "classic_sums.py").write_text(CLASSIC)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    python = interpreter("TOUCHSTONE_VERIFIERS_03", ".venv-verifiers03")

    def load(kind: str, **arguments) -> Harness:
        given = {"kind": kind, **arguments}
        return Harness(program="classic-sums", kind="verifiers", arguments=given, python=python, described=False, turns=4, seconds=60.0)

    return load


def test_verifiers_03_answers_once(classic):
    """A row of its own data, and a problem of ours put as its rows are."""
    environment = classic("single", system_prompt="Solve.", few_shot=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    right, wrong = played(lambda before, number: "it is 651", environment)
    shots = "<|system|>Solve.<|end|><|user|>a<|end|><|assistant|>b<|end|><|user|>"
    assert (right.outcome, right.reward, wrong.outcome, wrong.reward) == ("correct", 1.0, "wrong", 0.0)
    assert TOKENIZER.decode(right.prompt_ids) == shots + "What is 651?<|end|><|assistant|>"
    assert right.reward_parts["right"] == right.reward_parts["length"] == right.reward_parts["turns"] == 1.0
    (ours,) = played(lambda before, number: "it is 651", environment, [problem()])
    assert ours.outcome == "correct" and TOKENIZER.decode(ours.prompt_ids) == shots + "Three boxes of 217? (651)<|end|><|assistant|>"
    (silent, _) = played(lambda before, number: "", environment)
    assert silent.outcome == "unparsable" and silent.reward_parts["turns"] == 1.0


def test_verifiers_03_plays_turns_and_tools(classic):
    right, wrong = played(lambda before, number: "651" if "no<|end|>" in before else "one", classic("again"))
    assert [s.author for s in right.segments] == ["prompt", "policy", "prompt", "policy"] and right.outcome == "correct"
    assert wrong.finish_reason == "turns" and wrong.outcome == "wrong" and wrong.reward_parts["turns"] == 4.0
    right, wrong = played(lambda before, number: "651" if "<|tool|>6<" in before else CALL, classic("tools"))
    assert [s.author for s in right.segments] == ["prompt", "policy", "tool", "policy"] and right.outcome == "correct"
    assert right.reward_parts["tool_calls"] == right.reward_parts["double_calls"] == 1.0 and right.reward_parts["prefix_breaks"] == 0.0


def test_verifiers_03_that_fails_says_nothing_about_the_policy(classic):
    """A metric that raises, or gives no number, would count 0.0 there; an error of a tool or a bug of the environment too."""
    for said, arguments, detail in (
        ("651", {"kind": "single", "metric": "raising"}, "reward function raising raised ZeroDivisionError"),
        ("651", {"kind": "single", "metric": "words"}, "reward function words raised ValueError"),
        ("down", {"kind": "again"}, "ToolError: the tool is down"),
        ("bug", {"kind": "again"}, "KeyError: 'a bug'"),
    ):
        made = played(lambda before, number, said=said: said, classic(**arguments), count=2)
        assert all(t.outcome == "infrastructure" and detail in t.detail for t in made), made[0].detail
    with pytest.raises(UserError, match="rewards whole groups"):
        classic("single", metric="whole")
    with pytest.raises(UserError, match="'classic-sums' cannot be had: RuntimeError"):
        classic("single", nonsense=object.__name__, metric=None, rubric=1)


@pytest.mark.parametrize("schedule", [{"kind": "synchronous"}, IN_FLIGHT])
def test_verifiers_03_is_killed_and_goes_on(tmp_path, monkeypatch, rl_project, schedule):
    """kill -9 at random instants: the run that was continued leaves what one leaves that nobody disturbed, and no process."""
    python, name = interpreter("TOUCHSTONE_VERIFIERS_03", ".venv-verifiers03"), f"kind_{schedule['kind']}"
    (tmp_path / f"{name}.py").write_text(CLASSIC)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    environment = {
        "name": "harness", "kind": "verifiers", "program": name, "arguments": {"kind": "again"}, "python": python, "described": False, "turns": 3
    }  # fmt: skip
    project = other(rl_project, tmp_path / "p", recipe="grpo", schedule=schedule, overrides={"environment": environment})
    trajectories = [t for path in sorted((tmp_path / "p" / paths.ROLLOUTS / "t").glob("*.parquet")) for t in read_trajectories(path)]
    assert {t.reward for t in trajectories} == {0.0, 1.0} and max(len(t.turns) for t in trajectories) > 2
    killed(*project, most=3, seed=3)
    assert not left(f'"{name}"')


TASKS = '''
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: str = ""

class Doubling(vf.Toolset[vf.ToolsetConfig, vf.State]):
    TOOL_PREFIX = None

    @vf.tool
    async def double(self, number: int) -> int:
        """Twice a number."""
        return 2 * number

class Sum(vf.Task[Data, vf.State]):
    @classmethod
    def toolsets(cls, config):
        return [Doubling(vf.ToolsetConfig())]

    @vf.reward
    async def right(self, task, trace) -> float:
        if "bug" in trace.last_reply:
            raise KeyError("a bug")
        return float(task.answer in trace.last_reply)

    @vf.metric
    async def length(self, trace) -> float:
        return float(len(trace.last_reply))

class Sums(vf.Taskset[Sum]):
    def load(self):
        for n in (651, 2):
            yield Sum(Data(prompt=f"What is {n}?", system_prompt="Solve.", answer=str(n)), self.config.task)

__all__ = ["Sums"]

if __name__ == "__main__":
    Doubling.run()
'''
PLAIN_TASKS = TASKS.replace("[Doubling(vf.ToolsetConfig())]", "[]")
"""Without tools, whose servers take long to start."""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Settings of an environment of verifiers 0.4, whose `null` harness uv prepares."""
    (tmp_path / "task_sums.py").write_text(TASKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    python = interpreter("TOUCHSTONE_VERIFIERS_04", ".venv-verifiers04")
    return {"program": "task-sums", "kind": "verifiers_v1", "python": python, "described": False, "turns": 4, "seconds": 120.0}


def test_verifiers_04_plays_a_taskset(tasks):
    """Through a program of its own that streams, and tools of a server of its own."""

    def script(before: str, number: int) -> str:
        return "bug" if "Three boxes" in before else "651" if "<|tool|>6<" in before else CALL

    right, wrong, buggy = played(script, Harness(**tasks), [*ROWS, problem("9")])
    assert [s.author for s in right.segments] == ["prompt", "policy", "tool", "policy"], right.detail
    assert (right.outcome, right.reward, wrong.outcome, wrong.reward) == ("correct", 1.0, "wrong", 0.0)
    assert TOKENIZER.decode(right.segments[0].ids) == "<|system|>Solve.<|end|><|user|>What is 651?<|end|><|assistant|>"
    assert right.reward_parts["length"] == 3.0 and right.reward_parts["right"] == 1.0 and right.reward_parts["tool_calls"] == 1.0
    assert buggy.outcome == "infrastructure" and "a bug" in buggy.detail


def test_verifiers_04_in_flight_does_it_again(tmp_path, tasks, start):
    """Two trainings across updates give the same weights, journal and rollouts."""
    (tmp_path / "task_sums.py").write_text(PLAIN_TASKS)
    changes = {
        "steps": 3, "prompts_per_step": 2, "group_size": 2, "schedule": ScheduleSettings(**IN_FLIGHT | {"groups": 4}),
        "overrides": {"environment": {"name": "harness", **tasks}},
    }  # fmt: skip
    (weights, rows, rollouts), (again, rows_again, rollouts_again) = (run(tmp_path / name, start, row="grpo", **changes) for name in ("a", "b"))
    assert rows == rows_again and rollouts == rollouts_again and all(torch.equal(weights[name], again[name]) for name in weights)
    trajectories = [t for path in sorted((tmp_path / "a" / "rollouts").iterdir()) for t in read_trajectories(path)]
    assert len(trajectories) == 12 and {t.outcome for t in trajectories} <= {"correct", "wrong"}, [t.detail for t in trajectories]
    assert {v for t in trajectories for v in t.policy_version} == {0, 1}


@pytest.mark.parametrize(
    ("kind", "variable", "folder", "code", "arguments"),
    [
        ("verifiers", "TOUCHSTONE_VERIFIERS_03", ".venv-verifiers03", CLASSIC, {"kind": "single"}),
        ("verifiers_v1", "TOUCHSTONE_VERIFIERS_04", ".venv-verifiers04", PLAIN_TASKS, {}),
    ],
)
def test_rows_of_an_environment_become_problems_that_play_them(tmp_path, monkeypatch, kind, variable, folder, code, arguments):
    python, listed = interpreter(variable, folder), tmp_path / "rows.jsonl"
    (tmp_path / "listed_sums.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with listed.open("wb") as out:
        what = {"kind": kind, "name": "listed-sums", "arguments": arguments, "rows": 10}
        subprocess.run([python, HOST, json.dumps(what)], stdout=out, check=True, timeout=120)
    fields = {"prompt": "prompt", "answer": "answer", "verifier_args.row": "row"}
    rows = list(SOURCES["file"](FileSource(kind="file", path=listed.name, fields=fields), 1, "sums", tmp_path))
    assert [(p.prompt, p.answer, p.args) for p in rows] == [("What is 651?", "651", {"row": 0}), ("What is 2?", "2", {"row": 1})]
    environment = Harness(program="listed-sums", kind=kind, arguments=arguments, python=python, described=False, seconds=120.0)
    made = played(lambda before, number: re.findall(r"What is (\d+)", before)[-1], environment, rows[::-1])
    assert [t.reward for t in made] == [1.0, 1.0] and [TOKENIZER.decode(t.response_ids) for t in made] == ["2<|end|>", "651<|end|>"]


SERVER = '''
import sys
import time
import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

class Guess(Action):
    message: str
    strict: bool = False

class Answer(Observation):
    text: str

class Find(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = sys.argv[2] != "1"

    def reset(self, seed=None, episode_id=None, **kwargs):
        self.seed = seed
        return Answer(text=f"Find it, {seed % 7}.")

    def step(self, action, timeout_s=None, **kwargs):
        if "bug" in action.message:
            raise KeyError("a bug")
        right = "651" in action.message
        return Answer(text="yes" if right else "no, think again", reward=right, done=right)

    def close(self):
        time.sleep(0.2)

    @property
    def state(self):
        return State()

app = create_fastapi_app(Find, Guess, Answer, max_concurrent_envs=int(sys.argv[2]))
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", ws_ping_interval=0.3, ws_ping_timeout=0.3)
'''


@contextmanager
def open_env(folder: Path, sessions: int):
    """Address of a real server."""
    (folder / "server.py").write_text(SERVER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([interpreter("TOUCHSTONE_OPENENV", ".venv-openenv"), folder / "server.py", str(port), str(sessions)])
    try:
        for _ in range(600):
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"ws://127.0.0.1:{port}/ws"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("sessions", [1, 3])
def test_a_server_of_open_env_is_played(tmp_path, sessions):
    """Its sessions end late, and it leaves who does not answer its pings, as while the policy decodes."""

    def script(before: str, number: int) -> str:
        time.sleep(0.8 if number == 0 else 0)
        return "bug" if "(9)" in before else "651" if "think again" in before else "one"

    with open_env(tmp_path, sessions) as url:
        made = played(script, OpenEnv(url=url, sessions=sessions, more={"strict": True}), [problem(), problem("9")], count=2)
        again = played(script, OpenEnv(url=url, sessions=sessions), [problem()], count=2)
    right, buggy = made[:2], made[2:]
    assert [t.outcome for t in right] == ["correct"] * 2, [t.detail for t in right]
    assert all("EXECUTION_ERROR" in t.detail and t.outcome == "infrastructure" for t in buggy)
    assert [t.prompt_ids for t in right] == [t.prompt_ids for t in again] and "Find it, " in TOKENIZER.decode(right[0].prompt_ids)
