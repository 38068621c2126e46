"""What is wrong in params.yaml is told before anything runs: the key, what was expected, the nearest right name, everything at once."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines import checks, paths, tables
from pipelines.config.training import ArchitectureSettings
from pipelines.errors import UserError
from pipelines.models.loading import save_policy
from pipelines.models.tiny import tiny_model
from pipelines.models.tokenizer import train_tokenizer
from pipelines.verifiers import VERIFIERS
from pipelines.verifiers.settings import SETTINGS

ROOT = Path(__file__).parents[2]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
ROWS = [{"question": f"What is {n}+1?", "answer": str(n + 1), "tests": ["assert f(1) == 2"]} for n in range(3)]


def params_with(**changes):
    """The project's params with dotted keys, written with `__`, set to other values."""
    changed = copy.deepcopy(PARAMS)
    for key, value in changes.items():
        *above, last = key.split("__")
        section = changed
        for name in above:
            section = section.setdefault(name, {})
        section[last] = value
    return changed


def told(root, monkeypatch=None, **changes):
    """What a user is told of these params in `root`, a line each."""
    (root / "params.yaml").write_text(yaml.safe_dump(params_with(**changes), sort_keys=False))
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(UserError) as error:
        checks.load(root / "params.yaml", root)
    return [line.removeprefix(f"{root / 'params.yaml'}: ") for line in str(error.value).splitlines()]


def mine(**settings):
    """A source of ROWS, as a change of params."""
    return {"sources__train__mine": {"kind": "file", "path": "rows.jsonl", "fields": {"prompt": "question", "answer": "answer"}} | settings}


MATH = "stages__math"
SELECT = {"kind": "select", "data": ["difficulty", "math/rollouts"], "score": "variance", "most": 1}
THEIRS = {"kind": "command", "init": "sft", "data": "difficulty", "command": ["python", "mine.py"], "code": ["rows.jsonl"]}
FAULTS = [
    ({f"{MATH}__where": {"domain": ["math", "maths"]}}, "stages.math.where.domain: 'maths' is the domain of no source in sources.train; there are code, logic, math; did you mean 'math'?"),
    ({f"{MATH}__init": "stf"}, "stages.math.init: 'stf' names no model; choose one of base, code, merged, sft; did you mean 'sft'?"),
    ({f"{MATH}__reference": "cod"}, "stages.math.reference: 'cod' names no model; choose one of base, code, merged, sft; did you mean 'code'?"),
    ({f"{MATH}__generation": {"engine": "server", "server": {"model": "m"}}}, "stages.math: generation.engine 'server' gives no log-probabilities"),
    ({f"{MATH}__generation": {"engine": "scripted", "script": "rows.json"}}, "stages.math.generation.script: 'rows.json' is no file"),
    ({"base__train": {"goal": {"solved": {"maths": 0.2}}}}, "base.train.goal.solved: 'maths' is the domain of no source in sources.train"),
    ({"stages__difficulty__limit": {"cod": 3}}, "stages.difficulty.limit: 'cod' is the domain of no source in sources.train; there are code, logic, math; did you mean 'code'?"),
    ({"stages__difficulty__preset": "openr1"}, "stages.difficulty.preset: there is no 'openr1'; did you mean 'open_r1'?"),
    ({"stages__merged__search": {"data": "difficulty/ungraded"}, "stages__difficulty__limit": {}}, "stages.merged: it reads difficulty/ungraded, the rows beyond the limit of stage difficulty, which has none"),
    ({f"{MATH}__data": ["difficulty", "difficulty/ungraded"], "stages__difficulty__limit": {}}, "stages.math: it reads difficulty/ungraded, the rows beyond the limit of stage difficulty, which has none"),
    ({"stages__merged__init": "stf"}, "stages.merged.init: 'stf' names no model; choose one of base, code, math, sft; did you mean 'sft'?"),
    ({"stages__merged__models": ["mth"]}, "stages.merged.models: 'mth' names no model; choose one of base, code, math, sft; did you mean 'math'?"),
    ({f"{MATH}__data": "difficulty/grade"}, "stages.math.data: 'difficulty/grade' names no rows; choose one of curation/base"),
    ({f"{MATH}__data": ["difficulty", "row.jsonl"]}, "stages.math.data: row.jsonl: no such file; did you mean 'rows.jsonl'?"),
    ({f"{MATH}__data": {"difficulty": {"where": {"domain": ["cod"]}}}}, "stages.math.data.difficulty.where.domain: 'cod' is the domain of no source in sources.train"),
    (
        {"stages__t": {"kind": "distil", "init": "base", "data": "difficulty", "stored": "row.jsonl", "recipe": "stored_distillation"}},
        "stages.t.stored: row.jsonl: no such file; did you mean 'rows.jsonl'?",
    ),
    ({"stages__more": {"kind": "pretrain", "init": "base", "data": "note.txt"}}, "stages.more.data: note.txt: no such file"),
    ({"stages__later": {"kind": "extrapolate", "init": "math", "target": 9}}, "stages.later.init: 'math' keeps no weights along its training; give a stage that trains `keep: {every: ...}`"),
    ({"stages__math__keep": {"every": 1}, "stages__later": {"kind": "extrapolate", "init": "math", "target": 9, "settings": {"rnk": 1}}}, "stages.later.settings: method 'relex': unknown setting 'rnk'; did you mean 'rank'?"),
    ({"stages__math__kind": "rll"}, "stages.math.kind: 'rll' is none of sft, pretrain, grade, sample, select, critique, target, synthesise, rl, preference, distil, reward_model, merge, extrapolate, command; did you mean 'rl'?"),
    ({"stages__evaluation": {"kind": "sft", "init": "base", "data": "curation/sft"}}, "stages.evaluation: a stage of every project is called so; choose another name"),
    ({"evaluation__rollouts": ["mth"]}, "evaluation.rollouts: 'mth' is no stage that leaves rollouts; there are code, math; did you mean 'math'?"),
    ({"stages__merged__tokenizer": {"source": "unoin"}}, "stages.merged.tokenizer.source: 'unoin' is neither union, nor base, nor a folder"),
    ({"evaluation__gate__against": "sftt"}, "evaluation.gate.against: 'sftt' is no model that is evaluated; there are base, sft, code, math, merged; did you mean 'sft'?"),
    ({"evaluation__compare": [["mth", "sft"]]}, "evaluation.compare: 'mth' is no model that is evaluated; there are base, sft, code, math, merged; did you mean 'math'?"),
    ({"stages__t": THEIRS | {"code": ["row.jsonl"]}}, "stages.t.code: row.jsonl: no such file or folder; did you mean 'rows.jsonl'?"),
    ({"stages__t": THEIRS | {"code": ["../mine.py"]}}, "stages.t.code: '../mine.py' must be a path below the project"),
    ({"stages__t": THEIRS | {"environment": ".venv-nothing"}}, "stages.t.environment: .venv-nothing: there is no virtual environment"),
    ({"stages__t": THEIRS | {"command": ["pithon"]}}, "stages.t.command: there is no program 'pithon' on PATH"),
    ({"stages__t": THEIRS | {"command": "python mine.py"}}, "stages.t.command: input should be a valid tuple, got 'python mine.py'"),
    ({"stages__t": THEIRS | {"variables": ["NO_SUCH_KEY"]}}, "stages.t.variables: NO_SUCH_KEY is not set"),
    ({"stages__t": THEIRS | {"allow": ["archtecture"]}}, "stages.t.allow.0: input should be 'architecture' or 'tokenizer', got 'archtecture'; did you mean 'architecture'?"),
    ({"stages__t": THEIRS, f"{MATH}__data": "t/rollouts"}, "stages.math.data: 't/rollouts' names no rows"),
    ({"stages__t": THEIRS, "stages__sft__data": "t/rollouts"}, "stages.sft.data: 't/rollouts' names no rows"),
    ({"stages__t": SELECT | {"score": "varience"}}, "stages.t.score: there is no 'varience'; did you mean 'variance'?"),
    ({"stages__t": SELECT | {"settings": {"frm": "deviation"}}}, "stages.t.settings: score 'variance': unknown setting 'frm'; did you mean 'form'?"),
    ({"stages__t": SELECT | {"data": ["difficulty", "mth/rollouts"]}}, "stages.t.data: 'mth/rollouts' names no rows"),
    ({"stages__t": SELECT | {"mst": 1}}, "unknown key 'stages.t.mst'; did you mean 'most'?"),
    ({"evaluation__models": ["sft"]}, "evaluation.gate.candidate: 'merged' is no model that is evaluated; there are sft"),
    ({"evaluation__clusters": {"mth": "passage"}}, "evaluation.clusters: 'mth' is no benchmark; there are code, logic, math; did you mean 'math'?"),
    (mine(path="row.jsonl"), "sources.train.mine.path: row.jsonl: no such file; did you mean 'rows.jsonl'?"),
    (mine(path="rows.csv"), "sources.train.mine.path: rows.csv: no such file"),
    (mine(fields={"prompt": "qestion", "answer": "answer"}), "sources.train.mine.fields: none of the first 3 rows fits; rows.jsonl line 1: qestion: missing field; did you mean 'question'?"),
    (mine(fields={"prompt": "question", "anwser": "answer"}), "sources.train.mine.fields: fields has the unknown key 'anwser'; did you mean 'answer'?"),
    (mine(verifier="maths"), "sources.train.mine.verifier: there is no 'maths'; did you mean 'math'?"),
    (mine(verifier_args={"percnt": "ignore"}), "sources.train.mine.verifier_args.percnt: verifier 'math' has no setting 'percnt'; did you mean 'percent'?"),
    (mine(verifier_args={"units": "strct"}), "sources.train.mine.verifier_args.units: verifier 'math': setting 'units': input should be 'lenient', 'ignore' or 'strict', got 'strct'"),
    (mine(verifier_args={"row": -1}), "sources.train.mine.verifier_args.row: verifier 'math': setting 'row': input should be greater than or equal to 0, got -1"),
    (mine(domain="code", verifier="code"), "sources.train.mine.verifier_args: the first row: "),
    (mine(domain="code", verifier="code", fields={"prompt": "question", "answer": "answer", "verifier_args.assert": "tests"}), "sources.train.mine.fields.verifier_args.assert: verifier 'code' has no setting 'assert'; did you mean 'asserts'?"),
    (mine(kind="huggingface", path="./nothing"), "sources.train.mine.path: ./nothing: no such folder"),
    ({"curation__steps": ["normalize"]}, "curation.steps.0: input should be 'normalise'"),
    ({"curation__decontamination": {"paraphrases": {"embedding": "all-MiniLM-L6"}}}, "curation.decontamination.paraphrases.embedding: 'all-MiniLM-L6' is neither a packaged model (all-MiniLM-L6-v2)"),
    ({"stages__synthesis__generators": mine()["sources__train__mine"] and {"mine": mine()["sources__train__mine"]}}, "stages.synthesis.generators.mine.kind: 'file' generates nothing; choose one of arithmetic"),
    ({"base__model": "../models/smol"}, "base.model: ../models/smol: no such folder"),
    ({"base__model": "what is this"}, "base.model: what is this: no such folder, and no hub id, which looks like OWNER/NAME"),
    ({"base__model": "rows.jsonl"}, "base.model: rows.jsonl is a file; expected a folder"),
]  # fmt: skip


SMALL = {"kind": "rl", "init": "sft", "data": "difficulty"}
RECIPES = [
    ({"recipe": "grppo"}, "recipe: there is no 'grppo'; did you mean 'grpo'?"),
    ({"overrides": {"clp": {"name": "none"}}}, "overrides.clp: slot: there is no 'clp'; did you mean 'clip'?"),
    ({"overrides": {"clip": {"name": "pppo"}}}, "overrides.clip: clip: there is no 'pppo'; did you mean 'ppo'?"),
    ({"overrides": {"clip": {"name": "ppo", "lwo": 0.1}}}, "overrides.clip: clip 'ppo': unknown setting 'lwo'; did you mean 'low'?"),
    ({"overrides": {"clip": {"name": "ppo", "low": "x"}}}, "overrides.clip: clip 'ppo': setting 'low': expected float, got 'x'"),
    ({"overrides": {"tasks": [{"name": "drop_high"}]}}, "overrides.tasks: tasks: there is no 'drop_high'; did you mean 'drop_high_pass'?"),
    ({"overrides": {"tasks": [{"name": "rlcs", "bound": [0.1, 0.9]}]}}, "overrides.tasks: tasks 'rlcs': unknown setting 'bound'; did you mean 'bounds'?"),
    ({"overrides": {"tasks": [{"name": "staged", "by": "level", "bounds": [3, 1], "until": [5, 9]}]}}, "overrides.tasks: tasks 'staged': expected rising bounds"),
    ({"overrides": {"guidance": {"name": "templates", "nmes": ["abel"]}}}, "overrides.guidance: guidance 'templates': unknown setting 'nmes'; did you mean 'names'?"),
    ({"overrides": {"parts": [{"name": "verdict"}, {"name": "template_form"}]}}, "overrides.parts: part 'template_form' is of the templates that guidance"),
    ({"overrides": {"inputs": {"lw_BT": {}}}}, "overrides.inputs: inputs: there is no 'lw_BT'; did you mean 'low_BT'?"),
    ({"kl_control": {"target": 0.1}}, "kl_control: it steers KL terms to the reference, and recipe 'grpo' has none"),
    ({"reset": {"kl": 0.1}}, "reset.kl: it is of the KL to the reference, which recipe 'grpo' does not read"),
]
MERGES = [
    ({"method": "tise"}, ".method: there is no 'tise'; did you mean 'ties'?"),
    ({"method": "slerp", "settings": {"t": 0.5}}, ".method: method 'slerp': it takes the base and one model, got 2"),
    ({"method": "ram", "settings": {"changed_abov": 1}}, ".settings: method 'ram': unknown setting 'changed_abov'; did you mean 'changed_above'?"),
    ({"method": "ram", "settings": {"changed_above": "big"}}, ".settings: method 'ram': setting 'changed_above': expected float, got 'big'"),
    ({"method": "ram", "settings": {"epsilon": 0.003}}, ".settings: method 'ram': setting 'epsilon', a distance, has become 'changed_above'"),
    ({"method": "ties", "grid": {"dens": [1.0]}}, ": method 'ties': unknown setting 'dens'; did you mean 'density'?"),
]
PUZZLES = [
    ({"task": "sylogism"}, "reasoning-gym has no task 'sylogism'; did you mean syllogism?"),
    ({"settings": {"allow_al": True}}, "reasoning-gym refuses the settings of 'syllogism': it has no 'allow_al'; did you mean 'allow_all'?"),
    ({"settings": {"invalid_ratio": 2}}, "reasoning-gym refuses the settings of 'syllogism': invalid_ratio must be between"),
]


def test_recipes_merges_and_puzzles_are_held_to_their_tables_all_at_once(tmp_path):
    puzzle = {"kind": "reasoning_gym", "task": "syllogism", "count": 5}
    changes = {f"stages__s{n:02}": SMALL | change for n, (change, _) in enumerate(RECIPES)}
    changes |= {f"sources__train__p{n}": puzzle | change for n, (change, _) in enumerate(PUZZLES)}
    lines = told(tmp_path, **changes, stages__merged__method="rma", stages__merged__search={"data": "difficulty/ungraded", "candidates": [change for change, _ in MERGES]})
    wanted = ["stages.merged.method: there is no 'rma'; did you mean 'ram'?"]
    wanted += [f"stages.merged.search.candidates.{n}{sentence}" for n, (_, sentence) in enumerate(MERGES)]
    wanted += [f"stages.s{n:02}.{sentence}" for n, (_, sentence) in enumerate(RECIPES)]
    wanted += [f"sources.train.p{n}: {sentence}" for n, (_, sentence) in enumerate(PUZZLES)]
    assert len(lines) == len(wanted)
    assert [line for line, start in zip(lines, wanted, strict=True) if not line.startswith(start)] == []


@pytest.mark.parametrize(("change", "sentence"), FAULTS, ids=[sentence.split(": ")[0] + f"-{n}" for n, (_, sentence) in enumerate(FAULTS)])
def test_a_fault_is_one_sentence_with_its_key(tmp_path, change, sentence):
    (line,) = told(tmp_path, **change)
    assert line.startswith(sentence)


def test_a_stage_that_cannot_be_read_is_told_and_no_other_that_names_it(tmp_path):
    """`merged` and the gate name it: that they do is no fault."""
    (line,) = told(tmp_path, **{f"{MATH}__processes": 2, f"{MATH}__optimiser": {"name": "muon", "lr": 1.0}})
    assert line.startswith("stages.math: optimiser.name muon needs whole matrices")


def test_all_faults_are_told_together(tmp_path):
    changes = {MATH + "__stepz": 3, MATH + "__recipe": "grppo", "stages__code__where": {"domain": ["cod"]}, "stages__merged__method": "rma", "base__model": "../no"}
    overrides = {"clip": {"name": "ppo", "lw": 1, "hi": 2}, "aggregation": {"name": "token_men"}}
    lines = told(tmp_path, **changes, stages__code__overrides=overrides, **mine(path="no.jsonl"))
    keys = [line.split("'")[1] if line.startswith("unknown key") else line.split(": ")[0] for line in lines]
    assert sorted(keys) == [
        "base.model", "sources.train.mine.path", "stages.code.overrides.aggregation", "stages.code.overrides.clip", "stages.code.overrides.clip",
        "stages.code.where.domain", "stages.math.recipe", "stages.math.stepz", "stages.merged.method",
    ]  # fmt: skip


def test_the_tables_are_asked_once_and_again_when_their_code_changes(tmp_path, monkeypatch):
    """What they said is kept in a project's `.touchstone`, for later processes; a torn file is none."""
    asked = []

    class Counted(tables.Process):
        def __init__(self, questions):
            asked.append(questions)
            super().__init__(questions)

    monkeypatch.setattr(tables, "Process", Counted)
    (tmp_path / paths.STATE).mkdir()

    def another_process(**changes):
        monkeypatch.setattr(checks, "_ANSWERED", {})
        return told(tmp_path, **changes)

    wrong = {MATH + "__recipe": "grppo"}
    first = another_process(**wrong)
    assert len(asked) == 1 and "there is no 'grppo'" in first[0]
    assert another_process(**wrong) == first and len(asked) == 1
    another_process(stages__merged__method="rma")
    assert len(asked) == 2
    monkeypatch.setattr(checks, "code_sha256", lambda module: "other code")
    assert another_process(**wrong) == first and len(asked) == 3
    (tmp_path / paths.CHECKED).write_text('{"')
    assert another_process(**wrong) == first and len(asked) == 4


def test_the_default_holds_and_costs_no_torch(tmp_path):
    code = "import sys; from pathlib import Path; from pipelines import checks; checks.load(Path('params.yaml'), Path()); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_few_bad_rows_are_no_fault_of_the_mapping(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params_with(**mine())))
    (tmp_path / "rows.jsonl").write_text("no JSON\n" + json.dumps(ROWS[0]) + "\n")
    assert "mine" in checks.load(tmp_path / "params.yaml", tmp_path).sources.train


def questions():
    """Every row of recipes.yaml, every merge method, and wrong names of each kind."""
    from pipelines.merging import METHODS
    from pipelines.rl.recipe import names

    asked = [{"key": name, "about": "recipe", "name": name, "overrides": {}, "kl_control": True} for name in [*names(), "grppo"]]
    asked += [
        {"key": "o", "about": "recipe", "name": "grpo", "overrides": {slot: value}, "kl_control": False}
        for slot, value in {"clip": {"name": "ppo", "lw": 1}, "scale": {"name": "std"}, "inputs": {"low_BT": {"shre": 1}}, "clp": 1}.items()
    ]
    merges = [(name, {"weight": "x"}) for name in METHODS] + [("tise", {}), ("ties", {"density": 0.2})]
    asked += [{"key": m, "about": "merge", "method": m, "settings": s, "grid": {}, "experts": 2} for m, s in merges]
    return asked + [{"key": t, "about": "puzzle", "task": t, "count": 3, "settings": {"min_terms": -1}} for t in ("chain_sum", "syllogism", "sylogism")]


def test_tables_read_without_the_heavy_libraries_say_what_they_say_with_them():
    asked = json.dumps(questions())
    light, real = tables.Process(asked), tables.Process(asked, tables.REAL)
    found = light.faults()
    assert found == real.faults()
    assert len(found) > 60


def test_a_table_that_needs_a_library_while_it_is_imported_is_read_with_it(tmp_path):
    """A method of the user's whose module computes with torch at once: the stand-ins cannot, so the real libraries are loaded."""
    subprocess.run(["cp", "-a", str(ROOT / "pipelines"), str(tmp_path)], check=True)
    module = tmp_path / "pipelines/rl/slots/clip.py"
    module.write_text(module.read_text() + "\nEPSILON = float(torch.finfo(torch.float32).eps) * 2\n")
    asked = json.dumps([{"key": "k", "about": "recipe", "name": "grppo", "overrides": {}, "kl_control": False}])
    code = f"from pipelines import tables; print(tables.Process({asked!r}).faults()[0][1])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("there is no 'grppo'; did you mean 'grpo'?")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = train_tokenizer(["a small model of one layer"] * 4, 300)
    folder = tmp_path_factory.mktemp("models") / "small"
    save_policy(folder, tiny_model(ArchitectureSettings(hidden_size=8, layers=1, heads=1, intermediate_size=8, vocab_size=300, context=32), tokenizer, 1), tokenizer)
    return folder


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["config.json"], "config.json is missing"),
        (["tokenizer.json"], "the tokenizer is missing: none of tokenizer.json"),
        (["chat_template.jinja"], "its tokenizer has no chat template; choose an instruction-tuned model or add chat_template.jinja"),
        (["model.safetensors"], "the weights are missing: neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_a_folder_that_is_no_chat_model(model, tmp_path, files, sentence):
    subprocess.run(["cp", "-r", str(model), str(tmp_path / "small")], check=True)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params_with(base__model="small")))
    assert checks.load(tmp_path / "params.yaml", tmp_path).base.model == "small"
    for name in files:
        (tmp_path / "small" / name).unlink()
    (line,) = told(tmp_path, base__model="small")
    assert line.startswith(f"base.model: small: {sentence}")


def test_a_hub_id_is_left_to_the_stage_unless_the_hub_is_off(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params_with(base__model="Qwen/Qwen2.5-0.5B-Instruct")))
    loaded = checks.load(tmp_path / "params.yaml", tmp_path)
    assert list(checks.outside.left_open(loaded, tmp_path)) == ["base.model Qwen/Qwen2.5-0.5B-Instruct: a hub id, looked up when the stage base starts"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (line,) = told(tmp_path, base__model="Qwen/Qwen2.5-0.5B-Instruct")
    assert line == "base.model: Qwen/Qwen2.5-0.5B-Instruct: no such folder, not in the hub's cache, and HF_HUB_OFFLINE is set"


@pytest.mark.parametrize(
    ("change", "key", "variable"),
    [
        ({"curation__steps": ["normalise", "grade"]}, "curation.steps", "TOUCHSTONE_TEACHER_URL"),
        ({"stages__synthesis__method": "teacher"}, "stages.synthesis.method", "TOUCHSTONE_TEACHER_URL"),
        (mine(verifier="judge"), "sources.train.mine.verifier", "TOUCHSTONE_JUDGE_URL"),
        ({"evaluation__generation": {"engine": "server", "server": {"model": "m"}}}, "evaluation.generation.engine", "TOUCHSTONE_GENERATION_URL"),
    ],
)
def test_an_endpoint_that_is_asked_needs_an_address(tmp_path, monkeypatch, change, key, variable):
    monkeypatch.delenv(variable, raising=False)
    (line,) = told(tmp_path, **change)
    assert line.startswith(f"{key}: ") and f"{variable} names, which is not set" in line
    monkeypatch.setenv(variable, "localhost:80")
    (line,) = told(tmp_path, **change)
    assert line == f"{variable}: the address of the server must look like http://host:port/v1"
    monkeypatch.setenv(variable, "http://localhost:80/v1")
    checks.load(tmp_path / "params.yaml", tmp_path)


def test_a_step_that_may_be_skipped_is_no_fault_and_the_plan_says_it(tmp_path, monkeypatch):
    monkeypatch.delenv("TOUCHSTONE_TEACHER_URL", raising=False)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params_with(curation__steps=["grade"], curation__endpoint={"missing": "skip"})))
    loaded = checks.load(tmp_path / "params.yaml", tmp_path)
    assert list(checks.outside.left_open(loaded, tmp_path)) == ["curation.steps grade: skipped, for TOUCHSTONE_TEACHER_URL is not set"]


def test_a_device_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_DEVICE", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    said = "the device 'cuda' of TOUCHSTONE_DEVICE is not on this machine"
    assert told(tmp_path) == [f"stages.{name}: {said}" for name in ("code", "math")]
    half = {"stages__sft__train__precision": "bfloat16", "stages__difficulty__generation__precision": "auto", "evaluation__generation__precision": "bfloat16"}
    keys = ("evaluation.generation", "stages.code", "stages.math", "stages.sft.train")
    assert sorted(told(tmp_path, **half)) == [f"{key}: {said}" for key in keys]


def test_the_settings_of_verifiers_are_those_that_they_read():
    assert set(SETTINGS) == set(VERIFIERS)
    known = {name for settings in SETTINGS.values() for name in settings}
    read = set()
    for file in (ROOT / "pipelines/verifiers").glob("*.py"):
        text = file.read_text()
        read |= set(re.findall(r'\b(?:args|arguments)(?:\.get\(|\[)["\'](\w+)["\']', text))
    assert read - {"args", "kwargs", "expected"} <= known and read & {"percent", "accept", "options", "asserts", "metric", "match"}
    assert known - read == {"rubric", "threshold", "model", "timeout", "retries"} - read
