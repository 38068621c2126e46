"""What guidance shows beside a problem: templates with forms of their own, first parts of the solution."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from batches import batch
from loops import PROBLEMS, TOKENIZER
from playing import groups, problem

from pipelines import prompting
from pipelines.errors import UserError
from pipelines.rl import advantages, recipe
from pipelines.rl.environments import SingleTurn
from pipelines.rl.episodes import Asking, Task
from pipelines.rl.guidance.solution_chunks import before_answer, split
from pipelines.rl.guidance.templates import SHOTS, TEMPLATES, well_formed
from pipelines.rl.rewards.combine import cases

SAID = {
    "boxed": "3 + 4 = 7, so \\boxed{7}",
    "thought": "<think>3 + 4 = 7</think> It is \\boxed{7}.",
    "tagged": "<think>3 + 4 = 7</think>\n<answer>7</answer>",
    "stated": "3 + 4 = 7. The answer is 7.",
    "marked": "3 + 4 = 7\n#### 7",
}


def test_prompt_augmentation():
    """1,300 draws: each of the 13 templates some 100 times; a group shares one; the form counts .1 beside a reward of -1 or 1."""
    row = recipe("prompt_augmentation")
    asking = Asking(SingleTurn(), TOKENIZER, prompting.PLAIN)
    task = Task(problem(), 0, 2, (), asking.prompt(problem()))
    counts = Counter(row.single["guidance"](replace(task, key=(1, "t", step)), 0, asking).figures["template"] for step in range(1300))
    assert len(counts) == 13 and all(60 <= count <= 140 for count in counts.values())
    pool = [problem(str(n)) for n in range(60)]
    drawn = groups(lambda before, number: SAID["boxed"], pool, guide=row.single["guidance"], parts=row.lists["parts"], combine=row.single["combine"])
    assert all(len({t.reward_parts["template"] for t in group}) == 1 == len({tuple(t.prompt_ids) for t in group}) for group in drawn)
    forms = {name: group for group in drawn for name in [list(TEMPLATES)[int(group[0].reward_parts["template"])]]}
    assert {name for name, group in forms.items() if group[0].reward_parts["template_form"]} == {"simplerl", "qwen_math"}
    made = batch(torch.tensor([1.05, 1.0, 0.05, 0.0]), torch.zeros(4, dtype=torch.long))
    bare = recipe("prompt_augmentation", scale={"name": "none"})
    assert advantages(bare, made)[:, 0].tolist() == pytest.approx([1.05, 0.95, -0.95, -1.05], abs=1e-6)


def test_every_template_asks_for_the_problem_and_knows_its_form():
    for place, template in enumerate(TEMPLATES.values()):
        text = TOKENIZER.decode(prompting.prompt_ids(TOKENIZER, problem(), template.prompt))
        assert "Three boxes of 217" in text and "{problem}" not in text
        assert {form for form, said in SAID.items() if well_formed(said, place)} == {template.form}
    assert [len(TEMPLATES[f"lm_eval_{count}"].prompt.shots) for count in (1, 4, 8)] == [1, 4, 8] == [1, 4, len(SHOTS)]


def test_a_problem_gets_another_template_when_it_comes_again():
    """The key of a task has its step."""
    guide = recipe("grpo", guidance={"name": "templates", "names": ["abel", "formal"]}).single["guidance"]
    pool = [problem("651")] * 40
    seen = {group[0].reward_parts["template"] for group in groups(lambda before, number: "", pool, guide=guide)}
    assert seen == {float(list(TEMPLATES).index(name)) for name in ("abel", "formal")}
    with pytest.raises(UserError, match="expected names of abel, .*, got \\['abell'\\]"):
        groups(lambda before, number: "", pool, guide=recipe("grpo", guidance={"name": "templates", "names": ["abell"]}).single["guidance"])
    with pytest.raises(UserError, match="part 'template_form' is of the templates that guidance 'templates' draws"):
        recipe("grpo", parts=[{"name": "verdict"}, {"name": "template_form"}])


def test_sparkle():
    """Worked numbers: six paragraphs are 1, 2, 1, 2, nine sentences of three paragraphs 3, 3, 3; rewards 2, 1, -1, -1, 2, -1 give the advantages."""

    def sizes(text: str, mark: str) -> list[int]:
        parts = split(text, 4)
        assert "".join(parts) == text
        return [part.count(mark) for part in parts]

    assert sizes("\n\n".join(f"P{n}" for n in range(6)), "P") == [1, 2, 1, 2]
    assert sizes("\n\n".join(f"P{n} a. P{n} b. P{n} c." for n in range(3)), "P") == [3, 3, 3]
    assert sizes("Step 1: P.\nx. y.\nStep 2: P.\nz.", "P") == [1, 1]
    assert sizes("\n".join(f"{n}. P" for n in range(1, 9)), "P") == [2, 2, 2, 2]
    assert split("P1, P2, P3, P4, P5", 4) == ["P1, P2, ", "P3, P4, ", "P5"] and split("", 4) == []
    assert before_answer(["it is 17", "so 7", "end"], "7") == ["it is 17"]
    row = recipe("sparkle")
    made = batch(torch.tensor([2.0, 1, -1, -1, 2, -1]), torch.zeros(6, dtype=torch.long), logp_ref_BT=torch.zeros(6, 1))
    exact = recipe("sparkle", scale={"name": "group_std", "ddof": 1, "eps": 0.0})
    found = [1.107018, 0.442807, -0.885614, -0.885614, 1.107018, -0.885614]
    assert advantages(exact, made)[:, 0].tolist() == pytest.approx(found, abs=1e-5)
    combine = row.single["combine"]
    given = [{"correct": c, "format": f, "unsure": u} for c, f, u in ((1.0, 1.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (0.0, 0.0, 0.0))]
    assert [combine(parts) for parts in given] == [2.0, 1.0, 0.0, -1.0]
    assert cases({"a": 0.5}, cases=[({"a": 0.6}, 1.0), ({"a": 0.5}, 2.0)]) == 2.0


def test_a_group_goes_on_from_the_same_parts_of_the_solution():
    row = recipe("sparkle")
    solved = replace(PROBLEMS[0], answer="99", solution="One two three. Four five. Six seven eight. Nine.")
    drawn = groups(
        lambda before, number: "</think>not sure \\boxed{1}", [solved] * 60, guide=row.single["guidance"], parts=row.lists["parts"], combine=row.single["combine"]
    )
    levels = Counter(group[0].reward_parts["given"] for group in drawn)
    assert set(levels) == {0.0, 1.0, 2.0, 3.0, 4.0}
    for group in drawn:
        level = group[0].reward_parts["given"]
        first = group[0]
        assert {t.reward_parts["given"] for t in group} == {level} and {t.reward for t in group} == {0.0}  # wrong, but unsure
        assert [s.author for s in first.segments] == (["prompt", "guide", "policy"] if level else ["prompt", "policy"])
        if level:
            opening = TOKENIZER.decode(first.segments[1].ids)
            assert opening == f"<think> {''.join(split(solved.solution, 4)[: int(level)]).rstrip()}" and not first.segments[1].trains
            assert first.response.startswith(opening)
    short = recipe("grpo", guidance={"name": "solution_chunks", "longest": 1}).single["guidance"]
    assert {g[0].reward_parts["given"] for g in groups(lambda before, number: "", [solved] * 9, guide=short)} == {0.0}
