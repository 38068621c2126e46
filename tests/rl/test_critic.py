"""The critic of kind preference: which states it learns and what, against hand-computed numbers, and the stage with it, killed and alone."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from killing import Killed, die_after
from loops import GROUPS, PROBLEMS, TOKENIZER, policy_of
from loops import critic as ready
from loops import response as stored
from safetensors.torch import load_file

from pipelines import graph, paths
from pipelines.config.preference import CriticSettings, PreferenceStage
from pipelines.errors import UserError
from pipelines.models.loading import load_policy, save_policy
from pipelines.progress import Journal
from pipelines.rl import recipe
from pipelines.rl.collate import make_step
from pipelines.rl.history import History
from pipelines.rl.inputs import facts, probes
from pipelines.rl.inputs.step import Actor
from pipelines.rl.roles import roles_of, untaught
from pipelines.stages import Context, critic, preference
from pipelines.stages.critic import IDLE, States, loss, states_of
from pipelines.store import write_problems

LINES = ["<think> 1 + 1\n2 </think>\\boxed{{{}}}", "<think> 1 + 1\n3\nno </think>\\boxed{{{}}}"]
RESPONSES = [stored(p, line.format(p.answer if right else f"{p.answer}0"), float(right)) for i, p in enumerate(PROBLEMS[:8]) for line, right in zip(LINES, (True, i % 2), strict=True)]
"""Two to each of eight problems, of which the first is right and the second of every other problem."""


def test_what_a_state_learns():
    rollout = replace(RESPONSES[0], reward=0.75)
    prompt, response = rollout.prompt_ids, rollout.response_ids
    n = len(prompt)
    assert states_of(rollout, [0], False, None) == States([*prompt, response[0]], (n,), (0.75,)), "the reward, of the prompt"
    assert states_of(rollout, [0, 4], True, None) == States([*prompt, *response[:5]], (n, n + 4), (1.0, 1.0)), "whether it is right, of each"
    told = {tuple(prompt): 0.25, (*prompt, *response[:4]): None}
    assert states_of(rollout, [0, 4], True, told) == States([*prompt, response[0]], (n,), (0.25,)), "what was told, where something was"
    assert states_of(rollout, [4], True, told) is None


def test_the_loss_of_a_state(start):
    policy = ready(start, 0.5).policy
    one, two = States([1, 2, 3], (2,), (0.25,)), States([1, 2, 3, 4], (1, 3), (1.0, 0.0))
    assert loss(policy, [one, two], False).item() == pytest.approx(0.0625 + 0.25 + 0.25), "(.5 - R)^2 of three states"
    rises = math.log1p(math.exp(0.5))
    assert loss(policy, [one, two], True).item() == pytest.approx(3 * rises - 0.5 * 1.25, rel=1e-6), "softplus(v) - R v"
    assert loss(policy, [one, IDLE], False).item() == pytest.approx(0.0625) and IDLE.weight == 0.0


def step_of(start, row: str, actor):
    trajectories = [replace(r, group_id=g, sample_id=s) for g, group in enumerate(GROUPS[:2]) for s, r in enumerate(group)]
    made = PreferenceStage.model_validate({"init": "sft", "data": "x", "micro_batch": 3})
    by_id = {p.problem_id: p for p in PROBLEMS[:6]}
    return make_step(Actor(policy_of(start), TOKENIZER, {"critic": actor}), recipe(row), made, trajectories, by_id, History(None), {}, (1,), 1)


def test_a_recipe_reads_the_critic_at_its_states(start):
    actor = ready(start, 0.3)
    policy = actor.policy
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(1))
    step = step_of(start, "a_lol", actor)
    values, steps = facts.baseline(step, by="critic"), probes.step_values(step, delimiters=["</think>", ">"], by="critic")
    assert steps.shape[1] > 1
    for row, r in enumerate(step.rollouts):
        with torch.no_grad():
            head = policy.value_head(policy.base_model(torch.tensor([r.prompt_ids + r.response_ids])).last_hidden_state[0])[:, 0]
        assert float(values[row]) == pytest.approx(float(head[len(r.prompt_ids) - 1]), abs=1e-5)
        starts = probes.step_starts(TOKENIZER, r.response_ids, ["</think>", ">"])
        expected = [float(torch.sigmoid(head[len(r.prompt_ids) - 1 + place])) for place in starts]
        assert steps[row][: len(starts)].tolist() == pytest.approx(expected, abs=1e-5) and steps[row][len(starts) :].isnan().all()


def test_a_critic_goes_with_kind_preference():
    assert "'a_lol' reads baseline_B of a critic that learns from stored responses first: that is kind preference; or override inputs with {baseline_B: {by: pass_rate}}" in untaught(recipe("a_lol"), "")
    assert "override inputs with {step_value_BK: {by: policy}}" in untaught(recipe("direct_advantage"), "")
    assert untaught(recipe("a_lol"), "critic") is untaught(recipe("dpo"), "critic") is untaught(recipe("a_lol", inputs={}), "") is None
    assert "critic" in roles_of(recipe("a_lol")) and "critic" not in roles_of(recipe("a_lol", inputs={}))
    with pytest.raises(ValueError, match="a chat endpoint cannot go on from a state"):
        CriticSettings.model_validate({"generation": {"engine": "server"}})


GIVEN = {"init": "sft", "data": ["rows", "marked.jsonl"], "pairs": None, "prompts_per_step": 4, "steps": 4, "checkpoint_every": 1, "micro_batch": 5, "optimiser": {"lr": 1e-3},
         "critic": {"epochs": 6, "batch_size": 8, "optimiser": {"lr": 3e-3}}}  # fmt: skip


def project(root: Path, start) -> None:
    save_policy(root / paths.model("sft"), policy_of(start), TOKENIZER)
    write_problems(root / paths.rows("rows"), PROBLEMS[:8])
    marked = [{"problem_id": r.problem_id, "response": r.response, "label": r.reward > 0.5} for r in RESPONSES]
    (root / "marked.jsonl").write_text("\n".join(map(json.dumps, marked)))


def context(root: Path, **given: object) -> Context:
    settings = PreferenceStage.model_validate({**GIVEN, **given})
    return Context("liked", root, 1, settings, root / paths.WORK / "liked", Journal(root / paths.WORK / "liked" / "journal.jsonl", "liked"))


def rows(root: Path, name: str = "journal") -> list[dict[str, float]]:
    return [json.loads(line) for line in (root / paths.WORK / "liked" / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("row", ["a_lol", "direct_advantage"])
def test_the_critic_learns_before_the_policy_and_a_killed_stage_goes_on_with_both(tmp_path, start, row, monkeypatch):
    """Killed while the critic learns and again while the policy does."""
    for name in ("alone", "killed"):
        project(tmp_path / name, start)
    made = preference.run(context(tmp_path / "alone", recipe=row))
    learnt = rows(tmp_path / "alone", "critic-journal")
    assert len(learnt) == 12 and learnt[-1]["loss"] < learnt[0]["loss"] and made["critic_loss"] > 0
    assert learnt[0]["states"] == 8.0 if row == "a_lol" else made["critic_states"] > 16
    assert learnt[0]["loss"] == pytest.approx(0.75, abs=0.26) if row == "a_lol" else learnt[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    began = critic.train

    def dies(*given, journal, **named):
        die_after(journal, 5)
        return began(*given, journal=journal, **named)

    monkeypatch.setattr(critic, "train", dies)
    with pytest.raises(Killed):
        preference.run(context(tmp_path / "killed", recipe=row))
    monkeypatch.undo()
    again = context(tmp_path / "killed", recipe=row)
    die_after(again.journal, 3)
    with pytest.raises(Killed):
        preference.run(again)
    assert rows(tmp_path / "killed", "critic-journal") == learnt
    preference.run(context(tmp_path / "killed", recipe=row))
    for name in ("journal", "critic-journal"):
        assert rows(tmp_path / "killed", name) == rows(tmp_path / "alone", name)
    model = Path(paths.model("liked")) / "model.safetensors"
    assert (tmp_path / "killed" / model).read_bytes() == (tmp_path / "alone" / model).read_bytes()
    assert not any("value_head" in name for name in load_file(tmp_path / "alone" / model))


def test_only_the_head_learns_for_a_lol_and_all_weights_for_steps(tmp_path, start):
    project(tmp_path, start)
    before, _ = load_policy(tmp_path / paths.model("sft"))
    for row, moves in (("a_lol", False), ("direct_advantage", True)):
        preference.run(context(tmp_path, recipe=row))
        folder = tmp_path / paths.WORK / "liked" / paths.RESUME / "critic"
        state = torch.load(max(folder.glob("step-*.pt")), weights_only=True)["model"]
        assert any(not torch.equal(state[name], value) for name, value in before.state_dict().items()) == moves
        assert state["value_head.weight"].abs().sum() > 0
        for path in sorted((tmp_path / paths.WORK / "liked" / paths.RESUME).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def test_completions_of_the_reference_are_judged_once(tmp_path, start, monkeypatch):
    project(tmp_path, start)
    given = {"recipe": "a_lol", "critic": {**GIVEN["critic"], "completions": 2, "generation": {"max_new_tokens": 8, "batch_size": 4}}}
    asked = []
    generate = critic.create

    def counting(*arguments):
        engine = generate(*arguments)
        ask = engine.generate

        def noting(requests):
            asked.extend(requests)
            if len(asked) == 4 and not done:
                raise Killed
            return ask(requests)

        monkeypatch.setattr(engine, "generate", noting)
        return engine

    done: list[bool] = []
    monkeypatch.setattr(critic, "create", counting)
    with pytest.raises(Killed):
        preference.run(context(tmp_path, **given))
    done.append(True)
    made = preference.run(context(tmp_path, **given))
    assert made["critic_states"] == 16
    assert len(asked) == 10 and {request.samples for request in asked} == {2}, "eight prompts, of which two were asked when it was killed"
    kept = [json.loads(path.read_text()) for path in sorted((tmp_path / paths.WORK / "liked" / paths.RESUME / "critic").glob("*/*.json"))]
    assert [len(part) for part in kept] == [2, 2, 2, 2] and all(reward in (0.0, 0.5, 1.0) for part in kept for reward in part.values())
    with pytest.raises(UserError, match="liked: critic.completions are judged, which needs the problems with their answers"):
        (tmp_path / "alone.jsonl").write_text(json.dumps({"prompt": "2 + 2", "response": "4", "score": 1.0}))
        preference.run(replace(context(tmp_path, **given, data="alone.jsonl"), on_change="discard"))


@pytest.mark.long
def test_two_processes_give_what_one_does(tmp_path, start):
    for name in ("one", "two"):
        project(tmp_path / name, start)
        stage = PreferenceStage.model_validate({**GIVEN, "recipe": "a_lol", "processes": 1 + (name == "two")})
        (tmp_path / name / "given.json").write_text(json.dumps(graph.stage("liked", "preference", stage).given(1)))
        command = [sys.executable, "-m", "pipelines", "liked", "--settings", str(tmp_path / name / "given.json"), "--root", str(tmp_path / name)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("critic-journal", "journal"):
        one, two = rows(tmp_path / "one", name), rows(tmp_path / "two", name)
        assert len(one) == len(two) and [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], abs=1e-4)
    made, alone = (load_file(tmp_path / name / paths.model("liked") / "model.safetensors") for name in ("two", "one"))
    for name, value in alone.items():
        torch.testing.assert_close(made[name], value, rtol=0, atol=1e-4)
