"""Kind command: what an outside program gets, how it is ended and continued, and that what it leaves is taken or refused by name."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import programs
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from programs import PROBLEMS, TOKENIZER, TRAINER, give, made, project, run_stage
from safetensors.torch import load_file, save_file

from pipelines import paths, prompting, views
from pipelines.command import program
from pipelines.config.training import SftStage
from pipelines.errors import UserError
from pipelines.lineage.walk import Lineage
from pipelines.models.loading import load_policy
from pipelines.models.tiny import tiny_model
from pipelines.progress import Journal
from pipelines.records import Outcome
from pipelines.stages import Context, sft
from pipelines.store import read_json, read_trajectories

LOOKS = """
import json, os, sys, pathlib
from touchstone_stage import Stage
stage = Stage()
said = {"variables": dict(os.environ), "cwd": os.getcwd(), "arguments": sys.argv[1:], "settings": json.load(open("settings.json")),
        "rows": stage.rows(), "model": sorted(os.listdir("model"))}
pathlib.Path(stage.settings["tell"]).write_text(json.dumps(said))
print("the key is", os.environ["A_KEY"], "\\x1b[31mred")
sys.exit(3)
"""
LEAVES = """
import json, pathlib, shutil, sys
from touchstone_stage import Stage
stage = Stage()
shutil.copytree(stage.model, stage.out + "/model")
for name, text in stage.settings.get("write", {}).items():
    pathlib.Path(stage.out, name).write_text(text)
for name in stage.settings.get("remove", ()):
    pathlib.Path(stage.out, name).unlink()
for name, source in stage.settings.get("copy", {}).items():
    pathlib.Path(stage.out, name).unlink(missing_ok=True)
    shutil.copyfile(source, pathlib.Path(stage.out, name))
"""
"""Leaves the model that it was given, with files written, removed or replaced."""


def test_it_makes_model_rollouts_figures_and_lineage(tmp_path, capsys):
    root = project(tmp_path, rollouts=True)
    summary = run_stage(root)
    assert summary == {"reward": 0.0, "loss": pytest.approx(1 / 6), "parameters": 27168.0, "rollouts": 18.0, "problems": 3, "steps": 6}
    model, tokenizer = load_policy(root / "data/models/t")
    start, _ = load_policy(root / "data/models/start")
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, start.state_dict()[name])}
    assert len(moved) == 1 and tokenizer.get_vocab() == TOKENIZER.get_vocab()
    lines = (root / "data/plots/t.csv").read_text().splitlines()
    assert lines[:3] == ["step,reward,loss", "1,0.0,1.0", "2,0.3333333333333333,0.5"] and len(lines) == 7
    found = views.run(views.connect(root), "select step, outcome, reward, response, policy from rollouts where stage = 't' and reward > 0 order by step")
    assert found.to_pylist() == [
        {"step": step, "outcome": "correct", "reward": 0.5, "response": f"\\boxed{{{step}}}", "policy": "t"} for step in (2, 5)
    ]
    (two,) = [t for t in read_trajectories(root / "data/rollouts/t/step-000002.parquet") if t.outcome == Outcome.CORRECT]
    assert two.prompt_ids == prompting.prompt_ids(TOKENIZER, PROBLEMS[0])
    assert TOKENIZER.decode(two.response_ids) == "\\boxed{2}<|end|>" and two.turns[0].trains
    assert pq.read_table(root / "data/seen/t.parquet")["problem_id"].to_pylist() == [p.problem_id for p in PROBLEMS]
    lineage = Lineage(root)
    assert lineage.verify(["t"])[0] is None
    (root / "mine.py").write_text("another")
    assert str(lineage.verify(["t"])[0] or Lineage(root).verify(["t"])[0]).startswith("stage t: mine.py: is not what the stage read")
    assert not (root / ".touchstone/work/t/program").exists() and not (root / ".touchstone/work/t/resume").exists()
    assert "step 4 of" in capsys.readouterr().out


def test_the_folder_and_the_environment_of_the_program(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("A_KEY", "s3cr3t-value")
    monkeypatch.setenv("ANOTHER_KEY", "not for it")
    told = tmp_path / "told.json"
    command = ["python", "mine.py", "--some", "x y; $(z)"]
    root = project(tmp_path / "p", LOOKS, command=command, variables=["A_KEY"], settings={"tell": str(told), "lr": 0.1}, prompt={"system": "Solve."})
    with pytest.raises(UserError, match=r"t: python mine.py --some x y; \$\(z\) ended with exit code 3, saying: the key is \*\*\* red \(all"):
        run_stage(root)
    said = read_json(told)
    folder = root / ".touchstone/work/t/program"
    assert said["cwd"] == str(folder) and said["arguments"] == command[2:], "no shell has read them"
    assert said["variables"]["A_KEY"] == "s3cr3t-value" and "ANOTHER_KEY" not in said["variables"] and "PYTEST_CURRENT_TEST" not in said["variables"]
    assert said["model"] == sorted(file.name for file in (root / "data/models/start").iterdir())
    settings = said["settings"]
    assert {name: settings[name] for name in ("contract", "stage", "device", "settings")} == {
        "contract": 1, "stage": "t", "device": "cpu", "settings": {"lr": 0.1, "tell": str(told)},
    }  # fmt: skip
    first = said["rows"][0]
    assert first["messages"] == [{"role": "system", "content": "Solve."}, {"role": "user", "content": PROBLEMS[0].prompt}]
    assert (first["completion"], first["answer"], first["problem_id"]) == ("<think> so 2 </think>\\boxed{2}", "2", PROBLEMS[0].problem_id)
    assert pq.read_table(folder / "rows.parquet").to_pylist() == said["rows"]
    kept = [file for file in [*(root / ".touchstone").rglob("*"), *(root / "data").rglob("*")] if file.is_file()]
    assert not any(b"s3cr3t-value" in file.read_bytes() for file in kept), "secrets are passed by name and never written"
    assert (root / ".touchstone/work/t/program.log").read_text() == "the key is *** \x1b[31mred\n"
    assert "s3cr3t" not in capsys.readouterr().out


REFUSED = {
    "no model": ({"remove": ["model/config.json"]}, {}, "out/model: config.json is missing"),
    "a pickle": ({"remove": ["model/model.safetensors"], "write": {"model/pytorch_model.bin": "x"}}, {},
                 r"out/model: model.safetensors is missing \(pickled weights are not read\)"),
    "an adapter": ({"remove": ["model/model.safetensors"], "write": {"model/adapter_model.safetensors": "x"}}, {},
                   "out/model: model.safetensors is missing; it holds an adapter"),
    "no JSON": ({"write": {"model/config.json": "{"}}, {}, "out/model: config.json cannot be used: "),
    "torn": ({"copy": {"model/model.safetensors": "torn"}}, {}, "out/model: model.safetensors: not a whole safetensors file"),
    "not finite": ({"copy": {"model/model.safetensors": "nan"}}, {}, "out/model: tensor model.layers.1.mlp.up_proj.weight holds values that are not finite"),
    "a tensor less": ({"copy": {"model/model.safetensors": "less"}}, {}, "out/model: it has no tensor model.layers.1.mlp.up_proj.weight"),
    "another shape": ({"copy": {"model/model.safetensors": "shape"}}, {}, "out/model: it "),
    "another size": ({"copy": {"model/config.json": "config"}}, {}, r"another architecture than the model it started from: num_hidden_layers: 2 -> 1 \(`allow"),
    "another vocabulary": ({"copy": {"model/tokenizer.json": "tokenizer"}}, {}, "another vocabulary than that of the model it started from"),
    "no rollouts": ({}, {"rollouts": True}, "out/rollouts.jsonl is missing, and `rollouts` says"),
    "a column": ({"write": {"rollouts.jsonl": '{"step": 1, "problem_id": "x", "reponse": ""}\n'}}, {"rollouts": True},
                 "rollouts.jsonl line 1: unknown key 'reponse'; did you mean 'response'?"),
    "a column less": ({"write": {"rollouts.jsonl": '{"step": 1, "response": ""}\n'}}, {"rollouts": True}, "line 1: key 'problem_id' is missing"),
    "another problem": ({"write": {"rollouts.jsonl": '{"step": 1, "problem_id": "x", "response": ""}\n'}}, {"rollouts": True},
                        "line 1: no row of this stage is problem 'x'"),
    "no number": ({"write": {"metrics.jsonl": '{"step": 1, "loss": NaN}\n'}}, {}, "metrics.jsonl line 1: 'loss': nan is no figure"),
    "no text": ({"write": {"metrics.jsonl": '{"step": 1}\n{"step": 1}'}}, {}, "metrics.jsonl line 2: step 1 comes after step 1, and steps must rise"),
}  # fmt: skip


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """A project whose program leaves what settings say, and files that are wrong."""
    folder = tmp_path_factory.mktemp("wrong")
    root = project(folder / "p", LEAVES)
    whole = root / "data/models/start/model.safetensors"
    name = "model.layers.1.mlp.up_proj.weight"
    weights = load_file(whole)
    (folder / "torn").write_bytes(whole.read_bytes()[:-100])
    save_file(weights | {name: weights[name] * float("nan")}, folder / "nan")
    save_file({key: value for key, value in weights.items() if key != name}, folder / "less")
    save_file(weights | {name: weights[name][:-1].contiguous()}, folder / "shape")
    config = read_json(root / "data/models/start/config.json")
    (folder / "config").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    tokenizer = (root / "data/models/start/tokenizer.json").read_text()
    (folder / "tokenizer").write_text(tokenizer.replace("<|user|>", "<|person|>"))
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing_malformed_or_of_another_kind_is_refused_by_name(spoilt, case):
    settings, more, sentence = REFUSED[case]
    settings = settings | {"copy": {name: str(spoilt / source) for name, source in settings.get("copy", {}).items()}}
    give(spoilt / "p", settings=settings, **more)
    with pytest.raises(UserError, match=rf"^t: .*{sentence}") as error:
        run_stage(spoilt / "p", "discard")
    assert len(str(error.value).splitlines()) == 1
    assert not (spoilt / "p/data/models/t").exists() and not (spoilt / "p/data/rollouts/t").exists()


def test_another_architecture_and_tokenizer_where_they_are_allowed(spoilt):
    """A model of its own: one layer, and a vocabulary of other marks."""
    small = spoilt / "small"
    tokenizer = programs.train_tokenizer(["other words", "of another kind"], 280)
    programs.save_policy(small, tiny_model(programs.TINY.model_copy(update={"layers": 1}), tokenizer, 3), tokenizer)
    copies = {f"model/{file.name}": str(file) for file in small.iterdir()}
    give(spoilt / "p", settings={"copy": copies}, allow=["architecture", "tokenizer"])
    run_stage(spoilt / "p", "discard")
    model, taken = load_policy(spoilt / "p/data/models/t")
    assert model.config.num_hidden_layers == 1 and taken.get_vocab() == tokenizer.get_vocab()


FORKS = """
import os, signal, sys
import pipelines.stages.command
from pipelines.__main__ import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.dup2(2, 1)
        os.chdir(line.strip())
        os._exit(main(["t", "--settings", "given.json", "--root", "."]))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture
def forks():
    """Has imported everything and runs the stage of a project, a process each, as `python -m pipelines` does: says its pid, then its exit code."""
    pipe, home = subprocess.PIPE, str(Path(__file__).parents[2])
    process = subprocess.Popen([sys.executable, "-c", FORKS], stdin=pipe, stdout=pipe, text=True, cwd=home, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def children_of(root):
    """Processes that stand in the project."""
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        if process.info["cwd"] and process.info["cwd"].startswith(str(root)) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_for(condition, seconds=60):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)


def steps(root):
    file = root / ".touchstone/work/t/journal.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


LEAVES_A_CHILD = 'import subprocess, sys\nsubprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)\n' + TRAINER


def test_killed_or_interrupted_and_continued_it_leaves_the_same_bytes_and_no_process(tmp_path, forks):
    alone = project(tmp_path / "alone", LEAVES_A_CHILD, rollouts=True)
    run_stage(alone)
    root = project(tmp_path / "p", LEAVES_A_CHILD, rollouts=True, settings={"steps": 6, "pause": 0.4})
    for number, enough in ((signal.SIGKILL, 2), (signal.SIGINT, 4)):
        forks.stdin.write(f"{root}\n")
        forks.stdin.flush()
        pid = int(forks.stdout.readline())
        wait_for(lambda enough=enough: steps(root) >= enough)
        assert len(children_of(root)) >= 3, "the stage, the program and what it has started"
        os.kill(pid, number)
        assert int(forks.stdout.readline()) == (130 if number == signal.SIGINT else -signal.SIGKILL)
        wait_for(lambda: not children_of(root), 8)
        assert not (root / "data/models/t").exists()
    resumed_at = int((root / ".touchstone/work/t/resume/program/step").read_text())
    assert 4 <= resumed_at < 6
    summary = run_stage(root)
    assert summary["steps"] == 6 and not children_of(root)
    names = {name for name in made(root) if "manifest" not in name}
    assert names == {name for name in made(alone) if "manifest" not in name}
    assert all(made(root)[name] == made(alone)[name] for name in names)


def test_interrupted_work_of_another_program_is_refused_accepted_or_discarded(tmp_path, capsys):
    failing = TRAINER.replace("shutil.copytree", "assert not stage.settings.get('fail'), 'no more'\nshutil.copytree")
    root = project(tmp_path, failing, settings={"steps": 3, "fail": True})
    with pytest.raises(UserError, match=r"^t: python mine.py ended with exit code 1, saying: AssertionError: no more"):
        run_stage(root)
    give(root, settings={"steps": 4})
    with pytest.raises(UserError, match=r"an interrupted run stands at step 3 that was made otherwise: settings.settings.fail: True -> None; settings.settings.steps: 3 -> 4"):
        run_stage(root)
    assert run_stage(root, "accept")["steps"] == 4
    assert [entry["step"] for entry in read_json(root / paths.manifest("t"))["predicate"]["buildDefinition"]["internalParameters"]["accepted_changes"]] == [3]
    assert "step 3 of" in (said := capsys.readouterr().out) and said.count("step 3 of") == 1, "it went on from there"


def test_what_has_ended_well_is_not_made_again(tmp_path, monkeypatch):
    root = project(tmp_path)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.stages.command.check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stage(root)
    monkeypatch.undo()
    monkeypatch.setattr("pipelines.stages.command.Program", None)
    assert run_stage(root)["steps"] == 6


def test_a_program_that_takes_too_long_is_ended(tmp_path):
    root = project(tmp_path, "import time\ntime.sleep(60)\n", timeout=0.5)
    with pytest.raises(UserError, match=r"^t: timeout: the program ran for more than 0.5 seconds, and was ended"):
        run_stage(root)
    assert not [process for process in children_of(root) if process.pid != os.getpid()]


def test_the_virtual_environment_comes_first_and_nothing_is_inherited_by_chance(tmp_path):
    root = project(tmp_path, environment=".venv-own", command=["mine", "x"])
    (root / ".venv-own/bin").mkdir(parents=True)
    (root / ".venv-own/bin/mine").write_text('#!/bin/sh\necho "$VIRTUAL_ENV $1"; exit 1\n')
    (root / ".venv-own/bin/mine").chmod(0o755)
    with pytest.raises(UserError, match=rf"saying: {root}/.venv-own x \(all"):
        run_stage(root)
    give(root, command=["nowhere"])
    with pytest.raises(UserError, match="^t: command: there is no program 'nowhere' in "):
        run_stage(root, "discard")


def test_sft_reads_its_rollouts(tmp_path):
    root = project(tmp_path, rollouts=True)
    run_stage(root)
    context = Context("again", root, 7, SftStage.model_validate({"init": "start", "data": ["curation/rl", "t/rollouts"]}), tmp_path / "w", Journal(tmp_path / "w/j", "again"))
    read = sft._read(context, TOKENIZER, 64)
    texts = sorted(TOKENIZER.decode(example.ids[example.spans[0][0] :]) for example in read.examples)
    assert texts == ["<think> so 2 </think>\\boxed{2}<|end|>", "<think> so 5 </think>\\boxed{5}<|end|>", "<think> so 7 </think>\\boxed{7}<|end|>",
                     "\\boxed{2}<|end|>", "\\boxed{5}<|end|>"]  # fmt: skip


def test_lines_are_heard_whole_and_what_is_drawn_again_seldom(tmp_path):
    said = []
    code = r"""
import sys
for i in range(50):
    print(f"{i}/50", end="\r", flush=True)
print("do" + "ne", flush=True)
print("wrong", file=sys.stderr)
print("end", end="")
"""
    environment = program.variables(None, (), tmp_path, os.environ)
    ran = program.Program([sys.executable, "-c", code], tmp_path, environment, tmp_path / "log", tmp_path / "mark", said.append)
    assert ran.run(lambda: None, None) == 0
    assert said[0] == "0/50" and said[-3:] == ["done", "wrong", "end"] and len(said) < 8
    assert (tmp_path / "log").read_bytes().count(b"\r") == 50 and not (tmp_path / "mark").exists()


def test_what_a_look_raises_ends_the_program(tmp_path):
    def look():
        raise UserError("enough")

    environment = program.variables(None, (), tmp_path, os.environ)
    ran = program.Program([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, environment, tmp_path / "log", tmp_path / "mark", print)
    with pytest.raises(UserError, match="enough"):
        ran.run(look, None)
    assert not [process for process in children_of(tmp_path) if process.pid != os.getpid()]
