"""What a user is told about params.yaml: the key, what was expected, the nearest valid key."""

import copy
import sys
from pathlib import Path

import pytest
import yaml

from pipelines import config
from pipelines.errors import UserError

ROOT = Path(__file__).parents[2]
needs_tasks = pytest.mark.skipif(not (ROOT.parent / "shared/data/tasks").is_dir(), reason="the rows that overlays name are not there")
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())


def told(tmp_path, change) -> str:
    changed = copy.deepcopy(PARAMS)
    change(changed)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(changed, sort_keys=False))
    with pytest.raises(UserError) as error:
        config.load(path)
    return str(error.value).removeprefix(f"{path}: ")


def put(*keys, value):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("stages", "math", "stepz", value=3), "unknown key 'stages.math.stepz'; did you mean 'steps'?"),
        (put("stages", "math", "optimiser", "lrr", value=3), "unknown key 'stages.math.optimiser.lrr'; did you mean 'lr'?"),
        (put("sources", "train", "stories", "cuont", value=3), "unknown key 'sources.train.stories.cuont'; did you mean 'count'?"),
        (put("stages", "synthesis", "teacher", value={"modle": "m"}), "unknown key 'stages.synthesis.teacher.modle'; did you mean 'model'?"),
        (put("stges", value={}), "unknown key 'stges'; did you mean 'stages'?"),
        (put("stages", "difficulty", "samples", value="x"), "stages.difficulty.samples: input should be a valid integer"),
        (put("stages", "sft", "train", "optimiser", "lr", value=-1), "stages.sft.train.optimiser.lr: input should be greater than 0, got -1"),
        (put("stages", "difficulty", "band", value=[0.9, 0.1]), "stages.difficulty.band: must rise, got [0.9, 0.1]"),
        (put("curation", "steps", value=["normalize"]), "curation.steps.0: input should be 'normalise'"),
        (put("curation", "splits", "rl", value=-1), "curation.splits.rl: input should be greater than or equal to 0"),
        (put("curation", "splits", value={"sft": 0, "rl": 0}), "curation.splits: one weight must be above 0, got {'rl': 0.0, 'sft': 0.0}"),
        (put("sources", "train", "stories", "levels", value={1: 0}), "sources.train.stories.levels: one weight must be above 0, got {1: 0.0}"),
        (put("sources", "train", "stories", "levels", value={1: -1}), "sources.train.stories.levels.1: input should be greater than or equal to 0"),
        (put("sources", "train", "stories", "kind", value="arithmetc"), "sources.train.stories.kind: 'arithmetc' is none of arithmetic, sums, functions"),
        (put("base", "train", "epochs", value=-1), "base.train.epochs: input should be greater than 0, got -1"),
        (put("base", "architecture", "vocab_size", value=100), "base.architecture.vocab_size: input should be greater than or equal to 270"),
        (put("evaluation", "samples", value=4), "evaluation.ks: pass@8 needs as many samples, got evaluation.samples = 4"),
        (put("evaluation", "gate", "improve", value=["maths"]), "evaluation.gate.improve: 'maths' is no benchmark"),
        (put("stages", "merged", "dtype", value="int8"), "stages.merged.dtype: input should be 'float32', 'bfloat16' or 'float16', got 'int8'"),
        (put("sources", "train", "a/b", value=PARAMS["sources"]["train"]["stories"]), "sources.train.a/b: string should match pattern"),
        (lambda content: content.pop("sources"), "key 'sources' is missing"),
    ],
)
def test_a_wrong_value_is_named_in_one_sentence(tmp_path, change, sentence):
    message = told(tmp_path, change)
    assert message.startswith(sentence)
    assert "\n" not in message


ROWS_THERE = "curation/base, curation/sft, curation/rl, difficulty, difficulty/graded, difficulty/ungraded, synthesis, or a file *.jsonl or *.parquet"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("stages", "math", "init", value="nope"), "stages.math.init: 'nope' names no model; choose one of base, code, merged, sft"),
        (put("stages", "math", "init", value="stf"), "stages.math.init: 'stf' names no model; choose one of base, code, merged, sft; did you mean 'sft'?"),
        (put("stages", "math", "reference", value="cod"), "stages.math.reference: 'cod' names no model; choose one of base, code, merged, sft; did you mean 'code'?"),
        (put("stages", "merged", "models", value=["code", "mth"]), "stages.merged.models: 'mth' names no model; choose one of base, code, math, sft; did you mean 'math'?"),
        (put("stages", "merged", "models", value=["logic"]), "stages.merged.models: 'logic' names no model; choose one of base, code, math, sft"),
        (put("stages", "math", "init", value="difficulty"), "stages.math.init: stage 'difficulty' of kind grade makes rows, and a model is wanted; choose one of base"),
        (put("stages", "merged", "models", value=["synthesis"]), "stages.merged.models: stage 'synthesis' of kind synthesise makes rows, and a model is wanted"),
        (put("stages", "math", "init", value="math"), "stages.math.init: 'math' is the stage itself; choose one of base, code, merged, sft"),
        (put("stages", "math", "init", value="curation"), "stages.math.init: 'curation' names no model"),
        (put("stages", "math", "data", value="dificulty"), f"stages.math.data: 'dificulty' names no rows; choose one of {ROWS_THERE}; did you mean 'difficulty'?"),
        (put("stages", "math", "data", value=["difficulty", "curation/r"]), f"stages.math.data: 'curation/r' names no rows; choose one of {ROWS_THERE}; did you mean 'curation/rl'?"),
        (put("stages", "math", "data", value={"difficulty/grade": {}}), f"stages.math.data: 'difficulty/grade' names no rows; choose one of {ROWS_THERE}; did you mean 'difficulty/graded'?"),
        (put("stages", "math", "data", value="synthesis/graded"), "stages.math.data: 'synthesis/graded' names no rows"),
        (put("stages", "math", "data", value="sft"), "stages.math.data: stage 'sft' of kind sft makes a model, and rows are wanted; choose one of curation/base"),
        (put("stages", "synthesis", "data", value="synthesis"), "stages.synthesis.data: 'synthesis' is the stage itself; choose one of curation/base"),
        (put("stages", "merged", "search", value={"data": "ungraded"}), "stages.merged.search.data: 'ungraded' names no rows"),
        (put("stages", "merged", "search", value={"data": "code"}), "stages.merged.search.data: stage 'code' of kind rl makes a model, and rows are wanted"),
        (put("stages", "merged", "models", value=[]), "stages.merged.models: tuple should have at least 1 item"),
        (put("stages", "math", "data", value=[]), "stages.math.data: value should have at least 1 item"),
        (put("stages", "math", "data", value=[{"difficulty": {}}]), "stages.math.data: expected names of rows, got {'difficulty': {}}; what is read of each"),
        (put("stages", "math", "data", value={"difficulty": {"share": 1}, "synthesis": {}}), "stages.math.data: synthesis has no share, and the others have one"),
        (put("stages", "math", "kind", value="rll"), "stages.math.kind: 'rll' is none of sft, pretrain, grade, sample, select, critique, target, synthesise, rl, preference, distil, reward_model, merge, extrapolate, command; did you mean 'rl'?"),
        (put("stages", "math", value={"init": "sft", "data": "difficulty"}), "key 'stages.math.kind' is missing; choose one of sft, pretrain, grade, sample, select, critique, target, synthesise, rl, preference, distil, reward_model, merge, extrapolate, command"),
        (put("stages", "math", value={"kind": "rl", "data": "difficulty"}), "key 'stages.math.init' is missing"),
        (put("stages", "math", value={"kind": "rl", "init": "sft"}), "key 'stages.math.data' is missing"),
        (put("stages", "merged", value={"kind": "merge", "init": "sft"}), "key 'stages.merged.models' is missing"),
        (put("stages", "synthesis", value={"kind": "synthesise"}), "key 'stages.synthesis.data' is missing"),
        (put("stages", "merged", "search", value={}), "key 'stages.merged.search.data' is missing"),
        (put("stages", "math", "models", value=["code"]), "unknown key 'stages.math.models'"),
        (put("stages", "math", "where", value={"domains": ["math"]}), "unknown key 'stages.math.where.domains'; did you mean 'domain'?"),
        (put("stages", "base", value=PARAMS["stages"]["math"]), "stages.base: a stage of every project is called so; choose another name"),
        (put("stages", "report", value=PARAMS["stages"]["math"]), "stages.report: a stage of every project is called so; choose another name"),
        (put("stages", "Math", value=PARAMS["stages"]["math"]), "stages.Math: string should match pattern"),
        (put("stages", "code-identity", value=PARAMS["stages"]["math"]), "stages.code-identity: string should match pattern"),
    ],
)
def test_what_a_stage_names_wrongly_is_told_with_what_there_is(tmp_path, change, sentence):
    message = told(tmp_path, change)
    assert message.startswith(sentence)
    assert "\n" not in message


SCORER = {"kind": "reward_model", "init": "sft", "data": "math/rollouts"}


@pytest.mark.parametrize(
    ("stage", "change", "sentence"),
    [
        ("code", {"init": "scorer"}, "init: stage 'scorer' of kind reward_model makes a model that scores responses, and a policy is wanted; choose one of base"),
        ("merged", {"models": ["code", "scorer"]}, "models: stage 'scorer' of kind reward_model makes a model that scores responses, and a policy is wanted"),
        ("code", {"overrides": {"parts": [{"name": "reward_model", "stage": "sft"}]}}, "overrides.parts: stage 'sft' of kind sft makes a model, and a reward model is wanted; choose one of scorer"),
        ("code", {"overrides": {"parts": {"name": "reward_model", "stage": "scorr"}}}, "overrides.parts: 'scorr' names no reward model; choose one of scorer; did you mean 'scorer'?"),
        ("code", {"judge": {"stage": "difficulty"}}, "judge.stage: stage 'difficulty' of kind grade makes rows, and a reward model is wanted"),
        ("code", {"judge": {"stage": "scorer", "bond": 1}}, "unknown key 'stages.code.judge.bond'; did you mean 'bound'?"),
        ("scorer", {"pairs": {"judge": {"stage": "scorer"}}}, "pairs.judge.stage: 'scorer' is the stage itself"),
        ("scorer", {"pairs": {"judge": {"stage": "other", "model": "m"}}}, "pairs.judge.model: it is of an endpoint, and stage other judges; leave one of them out"),
        ("scorer", {"held_out": 0.6, "calibration": 0.4}, "held_out 0.6 and calibration 0.4 leave no problem to train on"),
        ("scorer", {"span": [1, 1]}, "span [1.0, 1.0] holds one score, and there is nothing to tell apart"),
        ("scorer", {"question": "{problem} {response}"}, "question: must hold {principle}"),
        ("scorer", {"train": {"goal": {}}}, "unknown key 'stages.scorer.train.goal'"),
    ],
)  # fmt: skip
def test_a_reward_model_is_named_where_one_is_wanted_and_nowhere_else(tmp_path, stage, change, sentence):
    def changed(content):
        content["stages"]["scorer"] = dict(SCORER)
        content["stages"][stage] |= change

    assert told(tmp_path, changed).removeprefix(f"stages.{stage}: ").removeprefix(f"stages.{stage}.").startswith(sentence)


def test_a_name_that_is_part_of_another_is_said_of_the_right_key(tmp_path):
    """`s` stands in `sft`, and is no model of `models`."""

    def change(content):
        content["stages"]["merged"] |= {"models": ["sft", "s"], "init": "base"}

    assert told(tmp_path, change).startswith("stages.merged.models: 's' names no model")


@pytest.mark.parametrize(
    ("changes", "cycle"),
    [
        ({"math": {"init": "code"}, "code": {"init": "math"}}, "code -> math -> code"),
        ({"math": {"reference": "merged"}}, "math -> merged -> math"),
        ({"difficulty": {"data": "synthesis"}}, "difficulty -> synthesis -> difficulty"),
        ({"sft": {"data": "synthesis"}}, "sft -> synthesis -> difficulty -> sft"),
        ({"sft": {"data": "judged"}, "judged": {"kind": "grade", "init": "base", "data": "curation/rl", "judge": {"stage": "scorer"}}, "scorer": SCORER}, "sft -> judged -> scorer -> sft"),
        ({"merged": {"search": {"data": "late"}}, "late": {"kind": "grade", "init": "merged", "data": "curation/rl"}}, "late -> merged -> late"),
    ],
)
def test_a_cycle_is_named(tmp_path, changes, cycle):
    def change(content):
        for name, changed in changes.items():
            content["stages"].setdefault(name, {}).update(changed)

    assert told(tmp_path, change) == f"stages: {cycle} make a cycle, so none of them could run first"


def test_all_that_is_wrong_with_names_is_told_at_once(tmp_path):
    def change(content):
        content["stages"]["math"] |= {"init": "stf", "data": ["dificulty", "code"]}
        content["stages"]["merged"]["models"] = ["mth", "code"]

    assert [line.rpartition(f"{tmp_path / 'params.yaml'}: ")[2].split(";")[0] for line in told(tmp_path, change).splitlines()] == [
        "stages.math.init: 'stf' names no model",
        "stages.math.data: stage 'code' of kind rl makes a model, and rows are wanted",
        "stages.math.data: 'dificulty' names no rows",
        "stages.merged.models: 'mth' names no model",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [("seed: [", "not valid YAML"), ("- 1", "expected a mapping of sections, got list"), ("seed: 1\nseed: 2\n", "key 'seed' appears twice")],
)
def test_a_file_that_is_no_params_file(tmp_path, text, words):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        config.load(path)
    with pytest.raises(UserError, match="no such file"):
        config.load(tmp_path / "none.yaml")


def test_null_stands_for_all_of_them():
    params = config.load(ROOT / "params.yaml")
    assert config.resolve(params, "evaluation").models == ("base", "sft", "code", "math", "merged")
    assert set(config.resolve(params, "synthesis").generators) == set(PARAMS["sources"]["train"])
    assert config.resolve(params, "synthesis").curation == params.curation
    assert config.resolve(params, "evaluation").rollouts == ("code", "math")
    with pytest.raises(UserError, match="there is no stage 'mth'; did you mean 'math'"):
        config.resolve(params, "mth")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("difficulty", {"difficulty": {}}),
        (["difficulty", "synthesis"], {"difficulty": {}, "synthesis": {}}),
        ({"difficulty": {"share": 3}, "rows/mine.jsonl": {"share": 1}}, {"difficulty": {"share": 3}, "rows/mine.jsonl": {"share": 1}}),
        ({"difficulty": None}, {"difficulty": {}}),
    ],
)
def test_rows_may_be_named_in_three_ways(given, read):
    settings = config.RlStage.model_validate({"init": "sft", "data": given})
    assert {name: rows.model_dump(exclude_defaults=True) for name, rows in settings.data.items()} == read
    assert config.RlStage.model_validate(settings.model_dump(mode="json")) == settings  # as a stage is given it


@pytest.mark.parametrize("overlay", sorted((ROOT / "overlays").glob("*.yaml")), ids=lambda path: path.stem)
@needs_tasks
def test_every_overlay_gives_valid_params(tmp_path, overlay):
    from tasks.overlays import apply

    project = tmp_path / "project"
    (project / ".venv-trl/bin").mkdir(parents=True)
    (project / ".venv-trl/bin/python").symlink_to(sys.executable)  # as if it had been made
    for name in ("data", "overlays"):
        (project / name).symlink_to(ROOT / name)
    path = project / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "shared").symlink_to(ROOT.parent / "shared")
    assert apply(path, overlay, root=project)
    config.load(path)
