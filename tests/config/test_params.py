"""What a user is told about params.yaml: the key, what was expected, the nearest valid key."""

import copy
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
        (put("rl", "stages", "math", "stepz", value=3), "unknown key 'rl.stages.math.stepz'; did you mean 'steps'?"),
        (put("rl", "stages", "math", "optimiser", "lrr", value=3), "unknown key 'rl.stages.math.optimiser.lrr'; did you mean 'lr'?"),
        (put("sources", "train", "stories", "cuont", value=3), "unknown key 'sources.train.stories.cuont'; did you mean 'count'?"),
        (put("synthesis", "teacher", value={"modle": "m"}), "unknown key 'synthesis.teacher.modle'; did you mean 'model'?"),
        (put("slf", value={}), "unknown key 'slf'; did you mean 'sft'?"),
        (put("difficulty", "samples", value="x"), "difficulty.samples: input should be a valid integer"),
        (put("sft", "train", "optimiser", "lr", value=-1), "sft.train.optimiser.lr: input should be greater than 0, got -1"),
        (put("difficulty", "band", value=[0.9, 0.1]), "difficulty.band: must rise, got [0.9, 0.1]"),
        (put("curation", "steps", value=["normalize"]), "curation.steps.0: input should be 'normalise'"),
        (put("curation", "splits", "rl", value=-1), "curation.splits.rl: input should be greater than or equal to 0"),
        (put("curation", "splits", value={"sft": 0, "rl": 0}), "curation.splits: one weight must be above 0, got {'rl': 0.0, 'sft': 0.0}"),
        (put("rl", "stages", "math", "init", value="nope"), "rl.stages.math.init: 'nope' names no stage; choose one of base, sft, code, math"),
        (put("rl", "stages", "base", value=PARAMS["rl"]["stages"]["math"]), "rl.stages.base: the name is taken"),
        (put("rl", "stages", "math", "domains", value=[]), "rl.stages.math.domains: tuple should have at least 1 item"),
        (put("sources", "train", "stories", "levels", value={1: 0}), "sources.train.stories.levels: one weight must be above 0, got {1: 0.0}"),
        (put("sources", "train", "stories", "levels", value={1: -1}), "sources.train.stories.levels.1: input should be greater than or equal to 0"),
        (put("sources", "train", "stories", "kind", value="arithmetc"), "sources.train.stories.kind: 'arithmetc' is none of arithmetic, functions"),
        (put("base", "train", "epochs", value=-1), "base.train.epochs: input should be greater than 0, got -1"),
        (put("base", "architecture", "vocab_size", value=100), "base.architecture.vocab_size: input should be greater than or equal to 270"),
        (put("evaluation", "samples", value=4), "evaluation.ks: pass@8 needs as many samples, got evaluation.samples = 4"),
        (put("evaluation", "gate", "improve", value=["maths"]), "evaluation.gate.improve: 'maths' is no benchmark"),
        (put("merging", "dtype", value="int8"), "merging.dtype: input should be 'float32', 'bfloat16' or 'float16', got 'int8'"),
        (put("merging", "models", value=["logic"]), "merging.models: 'logic' is no RL stage; there are code, math"),
        (put("sources", "train", "a/b", value=PARAMS["sources"]["train"]["stories"]), "sources.train.a/b: string should match pattern"),
        (lambda content: content.pop("rl"), "key 'rl' is missing"),
    ],
)
def test_a_wrong_value_is_named_in_one_sentence(tmp_path, change, sentence):
    message = told(tmp_path, change)
    assert message.startswith(sentence)
    assert "\n" not in message


def test_a_cycle_of_inits_is_named(tmp_path):
    def change(content):
        content["rl"]["stages"]["math"]["init"] = "code"
        content["rl"]["stages"]["code"]["init"] = "math"

    assert told(tmp_path, change) == "rl.stages.math.init: the stages code -> math -> code make a cycle"


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
    assert config.resolve(params, "merging").models == ("code", "math")
    assert config.resolve(params, "evaluation").models == ("base", "sft", "code", "math", "merged")
    assert set(config.resolve(params, "synthesis").generators) == set(PARAMS["sources"]["train"])
    assert config.resolve(params, "synthesis").curation == params.curation
    with pytest.raises(UserError, match="there is no RL stage 'logic'"):
        config.resolve(params, "rl@logic")


@pytest.mark.parametrize("overlay", sorted((ROOT / "overlays").glob("*.yaml")), ids=lambda path: path.stem)
@needs_tasks
def test_every_overlay_gives_valid_params(tmp_path, overlay):
    from tasks.overlays import apply

    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    assert apply(path, overlay, root=ROOT)
    config.load(path)
