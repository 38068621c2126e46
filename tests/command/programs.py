"""Outside programs, plain Python of the standard library, and a project in which a stage of kind command runs them."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines import paths, prompting
from pipelines.__main__ import run
from pipelines.config.command import CommandStage
from pipelines.config.training import ArchitectureSettings
from pipelines.graph import stage
from pipelines.models.loading import save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.records import Problem, problem_id
from pipelines.store import read_json, write_problems

TINY = ArchitectureSettings(hidden_size=32, layers=2, heads=2, intermediate_size=48, context=64)
PROBLEMS = [
    Problem(problem_id(prompt, answer), "math", prompt, answer, "integer", "math", solution=f"so {answer}")
    for prompt, answer in (("Mia has 3 pears and eats 1. How many are left?", "2"), ("2 + 5 = ?", "7"), ("9 - 4 = ?", "5"))
]
TOKENIZER = train_tokenizer([f"{p.prompt}\n{prompting.response(p)}" for p in PROBLEMS], 300)
TRAINER = '''
"""Adds .001 to the last weight in each of six steps; keeps its step in resume/, and writes what it did."""
import json, os, pathlib, shutil, time
from touchstone_stage import Stage

stage = Stage()
state = pathlib.Path(stage.resume, "step")
done = int(state.read_text()) if state.exists() else 0
rows = stage.rows()
for step in range(done + 1, stage.settings["steps"] + 1):
    answers = [(row["problem_id"], "\\\\boxed{%d}" % (step % 9)) for row in rows]
    verdicts = stage.score(answers)
    print(f"step {step} of", os.getpid(), flush=True)
    stage.keep([{"step": step, "problem_id": p, "response": r, "reward": v["score"] / 2} for (p, r), v in zip(answers, verdicts)])
    stage.log(step, total=6, reward=sum(v["score"] for v in verdicts) / len(verdicts), loss=1 / step)
    pathlib.Path(str(state) + ".part").write_text(str(step))
    os.replace(str(state) + ".part", state)
    time.sleep(stage.settings.get("pause", 0.0))
shutil.copytree(stage.model, stage.out + "/model")
file = pathlib.Path(stage.out, "model", "model.safetensors")
weights = bytearray(file.read_bytes())
weights[-2:] = (stage.seed % 100, 60)
file.write_bytes(weights)
'''


def project(root: Path, program: str = TRAINER, **settings: object) -> Path:
    """A project whose stage `t` starts from `start` and reads the split rl. `given.json` holds what it is given."""
    save_policy(root / paths.model("start"), tiny_model(TINY, TOKENIZER, 1), TOKENIZER)
    write_problems(root / paths.SPLITS["rl"], PROBLEMS)
    (root / "mine.py").write_text(program)
    give(root, **settings)
    return root


def give(root: Path, **settings: object) -> CommandStage:
    """Write given.json."""
    entry = {"init": "start", "data": "curation/rl", "command": ["python", "mine.py"], "code": ["mine.py"], "settings": {"steps": 6}, **settings}
    chosen = CommandStage.model_validate(entry)
    (root / "given.json").write_text(json.dumps(stage("t", "command", chosen).given(7)))
    return chosen


def run_stage(root: Path, on_change: str = "refuse") -> dict[str, float]:
    return run("t", root, read_json(root / "given.json"), "cpu", on_change)


def made(root: Path) -> dict[str, bytes]:
    """All outputs of the stage."""
    given = read_json(root / "given.json")
    places = [root / path for path in (*given["makes"], *given["records"], paths.manifest("t"))]
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.iterdir()))]
    return {str(file.relative_to(root)): file.read_bytes() for file in files}
