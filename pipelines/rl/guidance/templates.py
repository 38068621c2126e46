"""The same problem put in many ways, each with a form that an answer should have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipelines import seeding
from pipelines.config.common import PromptSettings, Shot
from pipelines.errors import UserError
from pipelines.rl.episodes import Asking, Task

Form = Literal["boxed", "thought", "tagged", "stated", "marked"]
FORMS: dict[Form, re.Pattern[str]] = {
    "boxed": re.compile(r"(?!.*</?think>)(?!.*</?answer>).*\\boxed\{.+\}.*", re.DOTALL),
    "thought": re.compile(r"\s*<think>(?:(?!</?think>).)*</think>(?!.*</?think>)(?!.*</?answer>).*\\boxed\{.+\}.*", re.DOTALL),
    "tagged": re.compile(r"\s*<think>(?:(?!</?think>).)*</think>\s*<answer>(?:(?!</?answer>).)+</answer>\s*", re.DOTALL),
    "stated": re.compile(r"(?!.*\\boxed)(?!.*</?think>).*\bthe answer is:? *[^\s.].*", re.DOTALL | re.IGNORECASE),
    "marked": re.compile(r"(?!.*\\boxed)(?!.*</?think>).*^#### *\S[^\n]*\s*", re.DOTALL | re.MULTILINE),
}
"""Form of a whole response -> what it matches: a box without tags; thinking in tags, then a box; thinking and answer in tags; `The answer is 5`; a
last line `#### 5`."""


@dataclass(frozen=True)
class Template:
    """A way of asking, and the form of the answer that it asks for."""

    prompt: PromptSettings
    form: Form


_TEACHER = "You are a teacher of mathematics, and a student has brought you this problem. "
_BOX = "Put the final answer within \\boxed{}."
_THINK = "Think first, inside <think> and </think>; then "
_REFLECT = "Before you answer, look for mistakes in what you thought, and mend them. "
SHOTS = tuple(
    Shot(user=user, assistant=assistant)
    for user, assistant in (
        ("A shelf holds 4 books, and 3 more are put on it. How many does it hold?", "4 + 3 = 7. The answer is 7."),
        ("Ben has 12 nuts and eats 5. How many are left?", "12 - 5 = 7, so 7 are left. The answer is 7."),
        ("A bus has 6 rows of 4 seats. How many seats has it?", "Each of 6 rows has 4 seats, and 6 * 4 = 24. The answer is 24."),
        ("20 sweets are shared by 5 children. How many does each get?", "20 / 5 = 4. The answer is 4."),
        ("What is 15 % of 80?", "15 / 100 * 80 = 12. The answer is 12."),
        ("If 3x + 1 = 10, what is x?", "3x = 10 - 1 = 9, so x = 9 / 3 = 3. The answer is 3."),
        ("A square has sides of 5 cm. What is its area in square centimetres?", "5 * 5 = 25. The answer is 25."),
        ("What is the remainder of 17 divided by 5?", "5 * 3 = 15 and 17 - 15 = 2. The answer is 2."),
    )
)


def _shown(count: int) -> Template:
    return Template(PromptSettings(user="Problem: {problem}\nSolution:", shots=SHOTS[:count]), "stated")


def _told(system: str, form: Form) -> Template:
    return Template(PromptSettings(system=system), form)


TEMPLATES: dict[str, Template] = {
    "abel": Template(PromptSettings(user="Question: {problem}\nWork it out step by step, and end with: The answer is"), "stated"),
    "simplerl": Template(PromptSettings(user=f"{{problem}}\nReason step by step. {_BOX}"), "boxed"),
    "qwen_math": _told(f"Reason step by step. {_BOX}", "boxed"),
    "open_r1": _told(f"{_THINK}give the answer inside <answer> and </answer>.", "tagged"),
    "open_r1_teacher": _told(f"{_TEACHER}{_THINK}give the answer inside <answer> and </answer>.", "tagged"),
    "deepseek_r1": _told(f"{_THINK}answer. {_BOX}", "thought"),
    "deepseek_r1_teacher": _told(f"{_TEACHER}{_THINK}answer. {_BOX}", "thought"),
    "formal": _told("Write a formal solution: what is given, each step with its reason, and last a line #### with the answer.", "marked"),
    "lm_eval_1": _shown(1),
    "lm_eval_4": _shown(4),
    "lm_eval_8": _shown(8),
    "reflective": _told(f"{_THINK}answer. {_REFLECT}{_BOX}", "thought"),
    "reflective_teacher": _told(f"{_TEACHER}{_THINK}answer. {_REFLECT}{_BOX}", "thought"),
}


def templates(task: Task, path: int, at: Asking, *, names: Sequence[str] = tuple(TEMPLATES)) -> Task:
    """Prompt augmentation for GRPO: the problem is put by one of these templates, drawn evenly each time that it comes from those that leave room for
    the answer; all episodes of its group get the same. `generation.prompt` is not read. The figure `template` is its place among all templates, by
    which part `template_form` knows the form.

    Raises:
        UserError: a name is none of theirs, or no template leaves room.
    """
    if unknown := [name for name in names if name not in TEMPLATES] or not names:
        raise UserError(f"guidance 'templates': expected names of {', '.join(TEMPLATES)}, got {unknown if names else 'none'}")
    for place in seeding.generator(*task.key, "template").permutation(len(names)):
        name = names[int(place)]
        prompt = replace(at, settings=TEMPLATES[name].prompt).prompt(task.problem)
        if len(prompt.ids) <= at.longest:
            return replace(task, prompt=prompt, figures={"template": float(list(TEMPLATES).index(name))})
    raise UserError(f"guidance 'templates': none of {', '.join(names)} leaves room for an answer to problem {task.problem.problem_id}")


def well_formed(response: str, template: float) -> bool:
    """Whether a response has the form that the template at this place asks for."""
    return FORMS[list(TEMPLATES.values())[int(template)].form].fullmatch(response) is not None
