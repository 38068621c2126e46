"""`touchstone migrate`: a params file or an overlay with a section per stage becomes one with the mapping `stages`, and means the same."""

import re

import mini_project
import pytest
import yaml

from flows.cli import main
from pipelines import checks
from pipelines.config import load, read_yaml
from pipelines.errors import UserError
from tasks import overlays
from tasks.migration import migrate

SOURCES = """\
# Everything that decides what the pipeline makes.

seed: 1

sources:
  train:
    stories: {kind: arithmetic, count: 24000, levels: {1: 1, 2: 1, 3: 1, 4: 1}}
    functions: {kind: functions, count: 14000, levels: {1: 0.5, 2: 1, 3: 1}}
    puzzles: {kind: reasoning_gym, task: syllogism, count: 1500, topics: [puzzle]}
  benchmarks:
    math: {kind: arithmetic, count: 200, levels: {1: 1, 2: 1, 3: 1, 4: 1}}
    code: {kind: functions, count: 100, levels: {1: 0.5, 2: 1, 3: 1}}
    logic: {kind: reasoning_gym, task: syllogism, count: 60, topics: [puzzle]}
  max_bad_rows: 0.01

curation:
  steps: [normalise, filters, exact_dedup, decontaminate, audit]
  filters: {prompt_chars: [8, 600], answer_chars: [1, 400], solution_chars: [0, 600]}
  # stories and functions come of few templates, in which the words that differ are the problem: no search for rewordings
  decontamination: {n: 13, rule: containment, threshold: 0.5, siblings: drop, paraphrases: null}
  splits: {base: 0.82, sft: 0.12, rl: 0.06}

base:
  model: null # a known model (`touchstone models`), folder, GGUF file or hub id instead trains nothing here
  architecture: {family: llama, hidden_size: 128, layers: 4, heads: 4, intermediate_size: 384, vocab_size: 768, context: 512}
  loss: solution
  train:
    epochs: 0.7
    goal: {solved: {math: 0.2, code: 0.2}} # of held-out problems; not reached, training goes on, for 3 rounds at most
    batch_size: 32
    max_tokens: 256
    optimiser: {name: muon, lr: 3.0e-3, muon_lr: 0.02}

"""
STAGES = """\
sft:
  train: {epochs: 1.0, batch_size: 32, max_tokens: 256, optimiser: {lr: 1.0e-3}}

difficulty:
  samples: 8
  band: [0.1, 0.9]
  limit: {math: 600, code: 250, logic: 30}
  generation: {max_new_tokens: 64}

synthesis:
  method: procedural
  budget: 200
  weak_below: 0.6

rl:
  stages:
    math:
      init: sft
      reference: sft
      domains: [math]
      recipe: grpo
      steps: 60
      prompts_per_step: 16
      group_size: 8
      generation: {max_new_tokens: 64}
      optimiser: {lr: 3.0e-4, warmup: 0.05, schedule: constant, weight_decay: 0.0}
    code:
      init: sft
      reference: sft
      domains: [code]
      recipe: grpo
      steps: 30
      prompts_per_step: 16
      group_size: 8
      generation: {max_new_tokens: 64}
      optimiser: {lr: 3.0e-4, warmup: 0.05, schedule: constant, weight_decay: 0.0}

merging:
  method: ram
  base: sft
  # float32 weights trained at 3e-4 all move: what moved by less than 2 % of itself counts as unchanged. Leave it out (0.001, what bfloat16 can
  # show) for bfloat16 weights and for small learning rates
  settings: {changed_above: 0.02}

"""
REST = """\
evaluation:
  samples: 12
  ks: [1, 2, 4, 8]
  generation: {max_new_tokens: 64}
  gate: {candidate: merged, against: sft, improve: [math, code], tolerate: 0.05}

report:
  samples: 6
"""
DEFAULT = SOURCES + STAGES + REST
"""params.yaml of the last version with sections."""


@pytest.fixture
def params(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(DEFAULT)
    return file


def migrated(file, text):
    file.write_text(text)
    migrate(file)
    return read_yaml(file)


def test_the_old_default_means_what_the_default_means(params):
    migrate(params)
    assert checks.load(params, params.parent) == load(mini_project.REPOSITORY / "params.yaml")
    text = params.read_text()
    assert text.startswith(SOURCES) and text.endswith("\n" + REST), "the rest is left as it is, to the letter"


def test_comments_and_the_way_things_are_written_stay(params):
    migrate(params)
    assert re.findall(r"#.*", params.read_text()) == re.findall(r"#.*", DEFAULT)
    assert "\n    # show) for bfloat16 weights and for small learning rates\n    settings: {changed_above: 0.02}\n" in params.read_text()
    assert "    train: {epochs: 1.0, batch_size: 32, max_tokens: 256, optimiser: {lr: 1.0e-3}}\n" in params.read_text()


def test_every_comment_stays_with_what_it_stood_at(params):
    lines = []
    for line in STAGES.splitlines():
        key = line.strip().partition(":")[0]
        if key and not key.startswith(("#", "reference")):
            line = f"{line[: len(line) - len(line.lstrip())]}# above {key}\n{line} # beside {key}"
        lines.append(line)
    before = SOURCES + "\n".join(lines) + "\n\n" + REST
    assert migrated(params, before) == migrated(params.with_name("other.yaml"), DEFAULT)
    after = params.read_text()
    assert sorted(re.findall(r"#.*", after)) == sorted(re.findall(r"#.*", before))
    for old, new in {"sft": "sft", "samples": "samples", "domains": "where", "math": "math", "base": "init", "merging": "merged"}.items():
        assert re.search(rf"^ +{new}: ?[^#\n]*# beside {old}$", after, re.MULTILINE)
    assert re.search(r"# above train\n    train:.*# beside train$", after, re.MULTILINE)
    assert re.search(r"# above domains\n    data: \[difficulty, synthesis\]\n    where: \{domain: \[math\]\}", after)


def test_a_second_time_says_that_it_is_done(params, capsys):
    assert main(["migrate", str(params)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "sft -> stages.sft with kind: sft, init: base, data: curation/sft",
        "difficulty -> stages.difficulty with kind: grade, init: sft, data: curation/rl",
        "synthesis -> stages.synthesis with kind: synthesise, data: difficulty/graded",
        "rl.stages.math -> stages.math with data: [difficulty, synthesis]",
        "rl.stages.code -> stages.code with data: [difficulty, synthesis]",
        "merging -> stages.merged with kind: merge, models: [code, math]",
    ]
    before = params.read_text()
    assert main(["migrate", str(params)]) == 0
    assert capsys.readouterr().out == f"{params}: it has the form of this version already\n"
    assert params.read_text() == before


def test_check_of_an_old_file_names_the_command(params, capsys, monkeypatch):
    (params.parent / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setenv("TOUCHSTONE_ROOT", str(params.parent))
    assert main(["check"]) == 2
    said = f"{params}: what sft, difficulty, synthesis, rl, merging said stands in the mapping `stages` now; `touchstone migrate {params}` rewrites the file\n"
    assert capsys.readouterr().err == said
    assert main(["migrate"]) == 0  # without a file: that of the project
    checks.load(params, params.parent)


@pytest.mark.parametrize("form", ["block", "flow", "braces"])
def test_every_way_to_write_it(params, form):
    """As blocks with lists of lines and four columns, with each stage in braces, or with whole sections in braces."""
    experts = {
        "math": {"init": "sft", "reference": "sft", "domains": ["math", "code"], "steps": 3},
        "code": {"reference": "sft", "init": "math", "domains": ["code"]},
        "last": {"domains": ["code"], "init": "code", "reference": "code"},
    }
    sections = {
        "rl": {"stages": experts}, "sft": {}, "difficulty": {"limit": {"math": 5}}, "synthesis": {},
        "merging": {"base": "base", "models": None, "search": {"budget": 3}},
    }  # fmt: skip
    width = {"block": 4, "flow": 2, "braces": 2}[form]
    text = "\n".join(
        f"{name}: {yaml.safe_dump(section, default_flow_style=True, width=9999)}" if form == "braces" or not section else
        yaml.safe_dump({name: section}, default_flow_style=None if form == "flow" else False, indent=width, sort_keys=False)
        for name, section in sections.items()
    )  # fmt: skip
    data = ["difficulty", "synthesis"]
    assert migrated(params, SOURCES + text + "\n" + REST)["stages"] == {
        "sft": {"kind": "sft", "init": "base", "data": "curation/sft"},
        "difficulty": {"kind": "grade", "init": "sft", "data": "curation/rl", "limit": {"math": 5}},
        "synthesis": {"kind": "synthesise", "data": "difficulty/graded"},
        "math": {"kind": "rl", "init": "sft", "data": data, "where": {"domain": ["math", "code"]}, "steps": 3},
        "code": {"kind": "rl", "init": "math", "reference": "sft", "data": data, "where": {"domain": ["code"]}},
        "last": {"kind": "rl", "init": "code", "data": data, "where": {"domain": ["code"]}},
        "merged": {"kind": "merge", "init": "base", "models": ["code", "last", "math"], "search": {"data": "difficulty/ungraded", "budget": 3}},
    }
    assert [line for line in params.read_text().splitlines() if line and line[0] not in " #"][-3:] == ["stages:", "evaluation:", "report:"]
    checks.load(params, params.parent)


OVERLAY = """\
# one stage only
difficulty:
  samples: 2 # quick
  limit: {math: 48, code: null}
synthesis: {method: none}
rl:
  stages:
    code: null
    math: {steps: 3, generation: {max_new_tokens: 128}} # three steps
merging: {settings: null} # what bfloat16 can show
"""


def test_an_overlay_says_only_what_differs(params, capsys):
    overlay = params.with_name("overlay.yaml")
    overlay.write_text(OVERLAY)
    with pytest.raises(UserError, match=rf"{overlay}: what difficulty, synthesis, rl, merging said .* `touchstone migrate {overlay}`"):
        overlays.apply(params, overlay)
    assert main(["migrate", str(overlay)]) == 0
    assert "look at this: a stage is deleted; say in stages.merged.models which are merged" in capsys.readouterr().out
    assert overlay.read_text() == """\
stages:
  # one stage only
  difficulty:
    samples: 2 # quick
    limit: {math: 48, code: null}
  synthesis: {method: none}
  code: null
  math: {steps: 3, generation: {max_new_tokens: 128}} # three steps
  merged: {settings: null} # what bfloat16 can show
"""
    with pytest.raises(UserError, match=rf"{params}: what sft, .* `touchstone migrate {params}`"):
        overlays.apply(params, overlay)
    migrate(params)
    overlay.write_text(overlay.read_text().replace("{settings: null}", "{models: [math], settings: null}"))
    overlays.apply(params, overlay)
    stages = load(params).stages
    assert set(stages) == {"sft", "difficulty", "synthesis", "math", "merged"}
    assert (stages["math"].steps, stages["difficulty"].samples, stages["merged"].settings) == (3, 2, {})


def test_an_overlay_that_adds_a_stage_says_all_of_it(params):
    overlay = params.with_name("overlay.yaml")
    added = migrated(overlay, "rl: {stages: {logic: {init: math, reference: sft, domains: [logic]}}}\n")
    assert added == {
        "stages": {"logic": {"kind": "rl", "init": "math", "reference": "sft", "data": ["difficulty", "synthesis"], "where": {"domain": ["logic"]}}}
    }
    migrate(params)
    overlays.apply(params, overlay)
    assert load(params).stages["logic"].init == "math"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEFAULT + "stages: {}\n", "has the mapping `stages` and sft, difficulty, synthesis, rl, merging too"),
        (DEFAULT.replace("    code:\n      init", "    synthesis:\n      init"), "rl.stages.synthesis: another stage is called so now"),
        (DEFAULT.replace("    code:\n      init", "    report:\n      init"), "rl.stages.report: another stage is called so now"),
        (DEFAULT.replace("    math:\n", "    math: &like\n").replace("merging:", "    again: *like\nmerging:"), "is written in a way that cannot be moved as it is"),
        ("- 1\n", "expected a mapping"),
    ],
)
def test_what_cannot_be_rewritten_is_left_as_it_is(params, text, message):
    params.write_text(text)
    with pytest.raises(UserError, match=message):
        migrate(params)
    assert params.read_text() == text
    with pytest.raises(UserError, match="no such file"):
        migrate(params.with_name("none.yaml"))
