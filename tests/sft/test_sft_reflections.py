"""Re-ReST (arXiv 2406.01495): wrong answers corrected by a reflector join what an agent learns, and are what the reflector learns."""

import json
from pathlib import Path

import pytest
from test_sample_stage import row
from test_sft_critiques import context, project  # noqa: F401

from pipelines import paths
from pipelines.config import Params
from pipelines.config.sampling import REFLECT, SampleStage
from pipelines.config.training import SftStage
from pipelines.errors import UserError
from pipelines.lineage.digests import tree_sha256
from pipelines.models.loading import load_tokenizer
from pipelines.stages import sample, sft
from pipelines.store import read_dropped, read_problems, read_trajectories, write_problems

ROWS = [row(f"What is {n} + 1?", str(n + 1)) for n in range(10)]
RIGHT = {problem.prompt: f"It is one more.\n\\boxed{{{problem.answer}}}" for problem in ROWS}
WRONG = {problem.prompt: "I guess.\n\\boxed{99}" for problem in ROWS}


def asked(prompt: str, answer: str) -> str:
    """What the reflector sees of a wrong answer."""
    return REFLECT.replace("{problem}", prompt).replace("{answer}", answer).replace("{feedback}", "wrong")


def run(root: Path, solves: int = 4, fixes: int = 3, samples: int = 1, **settings: object) -> dict[str, float]:
    """An agent that solves the first rows, and a reflector that corrects so many of the others."""
    prompts = [problem.prompt for problem in ROWS]
    agent = {prompt: [RIGHT[prompt] if place < solves else WRONG[prompt]] for place, prompt in enumerate(prompts)}
    mirror = {asked(prompt, WRONG[prompt]): [RIGHT[prompt] if place < solves + fixes else WRONG[prompt]] for place, prompt in enumerate(prompts)}
    for name, said in (("agent", agent), ("mirror", mirror)):
        (root / f"{name}.json").write_text(json.dumps(said))
    write_problems(root / paths.rows("curation/rl"), ROWS)
    scripted = {name: {"engine": "scripted", "script": str(root / f"{name}.json"), "max_new_tokens": 64} for name in ("agent", "mirror")}
    reflect = {"by": "base", "generation": scripted["mirror"]} | settings.pop("reflect", {})
    given = {"init": "policy", "data": "curation/rl", "samples": samples, "generation": scripted["agent"], "reflect": reflect} | settings
    return sample.run(context(root, "said", SampleStage.model_validate(given)))


def test_of_ten_four_pass_and_three_of_six_are_fixed(project: Path) -> None:  # noqa: F811
    summary = run(project)
    figures = {"solved": 4, "kept": 7, "dropped": 3, "reflected": 6, "corrected": 3, "reflection_too_long": 0, "answers": 10, "right": 4}
    assert {name: summary[name] for name in figures} == figures
    agent, mirror = (read_problems(project / paths.rows(name)) for name in ("said", "said/reflections"))
    known = {problem.problem_id: problem for problem in ROWS}
    assert len(agent) == 7 and {found.problem_id for found in agent} <= set(known)
    assert all(found.prompt == known[found.problem_id].prompt and found.solution == "It is one more." for found in agent)
    assert sorted(found.pass_rate for found in agent) == [0.0] * 3 + [1.0] * 4, "the pass rate is the agent's own"
    assert len(mirror) == 3 and {found.parents for found in mirror} == {(problem.problem_id,) for problem in ROWS[4:7]}
    for found in mirror:
        (parent,) = (problem for problem in ROWS if problem.problem_id == found.parents[0])
        assert found.prompt == asked(parent.prompt, WRONG[parent.prompt]) and (found.answer, found.solution) == (parent.answer, "It is one more.")
        assert (found.pass_rate, found.licence, found.source) == (None, "MIT", "s")
    assert [gone.reason for gone in read_dropped(project / paths.ROWS / "said" / paths.DROPPED)] == ["no_right_answer"] * 3
    answers = [t for file in (project / paths.ROLLOUTS / "said").glob("*.parquet") for t in read_trajectories(file)]
    assert len(answers) == 10 and sum(t.outcome == "correct" for t in answers) == 4, "rollouts are the agent's own"

    tokenizer = load_tokenizer(project / paths.model("base"))
    for data, examples in (("said", 7), ("said/reflections", 3)):
        read = sft._read(context(project, "learns", SftStage.model_validate({"init": "base", "data": data})), tokenizer, 512)
        assert len(read.examples) == examples


def test_it_is_the_same_again_and_an_agent_without_a_wrong_answer_reflects_on_none(project: Path) -> None:  # noqa: F811
    run(project)
    before = tree_sha256(project / paths.ROWS / "said")
    assert run(project)["corrected"] == 3 and tree_sha256(project / paths.ROWS / "said") == before
    assert run(project, rows="all")["kept"] == 10
    assert run(project, solves=10)["reflected"] == 0 and read_problems(project / paths.rows("said/reflections")) == []
    with pytest.raises(UserError, match="said: not one of 10 rows got a right answer"):
        run(project, solves=0, fixes=0)


def test_different_wrong_answers_are_reflected_on_up_to_a_bound(project: Path) -> None:  # noqa: F811
    several = json.dumps({ROWS[0].prompt: ["\\boxed{7}", "\\boxed{8}", "\\boxed{7}", "\\boxed{1}"]})
    write_problems(project / paths.rows("curation/rl"), ROWS[:1])
    (project / "agent.json").write_text(several)
    (project / "mirror.json").write_text(json.dumps({asked(ROWS[0].prompt, wrong): ["\\boxed{1}"] for wrong in ("\\boxed{7}", "\\boxed{8}")}))
    for bound, reflected in ((4, 2), (1, 1)):
        scripted = {name: {"engine": "scripted", "script": str(project / f"{name}.json")} for name in ("agent", "mirror")}
        given = {"init": "policy", "data": "curation/rl", "samples": 4, "generation": scripted["agent"]}
        given["reflect"] = {"generation": scripted["mirror"], "per_problem": bound}
        summary = sample.run(context(project, "many", SampleStage.model_validate(given)))
        assert (summary["reflected"], summary["corrected"], summary["kept"]) == (reflected, reflected, 1)
        assert read_problems(project / paths.rows("many"))[0].solution == "", "its own right answer counts before a corrected one"


def test_what_params_name_wrongly_is_told() -> None:
    def told(stages: dict[str, object]) -> str:
        content = {
            "seed": 1,
            "sources": {"train": {"a": {"kind": "arithmetic", "count": 9}}, "benchmarks": {"b": {"kind": "arithmetic", "count": 2}}},
            "stages": {"m": {"kind": "sft", "init": "base", "data": "curation/sft"}, **stages},
            "evaluation": {"gate": {"candidate": "m", "against": "base", "improve": ["b"]}},
        }
        with pytest.raises(ValueError) as error:
            Params.model_validate(content)
        return str(error.value)

    said = {"kind": "sample", "init": "m", "data": "curation/rl"}
    assert "stages.said.reflect.by: 'mm' names no model; choose one of base, m" in told({"said": said | {"reflect": {"by": "mm"}}})
    assert "stages.said.outputs.by: 'mm' names no model" in told({"said": said | {"outputs": {"by": "mm"}, "reflect": {"by": "m"}}})
    assert "stages.n.data: 'said/reflections' names no rows" in told({"said": said, "n": {"kind": "sft", "init": "m", "data": "said/reflections"}})
    assert "must hold {feedback}" in told({"said": said | {"reflect": {"instruction": "{problem} {answer}"}}})
