"""How a problem becomes a prompt, and what a well-formed response looks like.

Where params say nothing else, a response is `<think>` working `</think>` and then the answer: `\\boxed{...}`, or a fenced python block
where a program is asked for. What stands inside the think block is never judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config.common import PromptSettings
from pipelines.records import Problem

PLAIN = PromptSettings()

THINK = "<think>"
END_THINK = "</think>"
BOXED = "\\boxed{"
FENCE = "```python\n"
END_FENCE = "\n```"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
"""Template of the embedded model's tokenizer: one special token per role, `<|end|>` closes a turn."""

SYSTEM = {
    "program": "Think inside <think> and </think>, then give the program in a ```python block.",
    "other": "Think inside <think> and </think>, then put the final answer within \\boxed{}.",
}
"""System message for models that bring their own chat template; the embedded model learns the format from its cold start."""


def response(problem: Problem, prompt: PromptSettings = PLAIN) -> str:
    """The worked solution as a policy should write it.

    Raises:
        ValueError: the problem has no solution.
    """
    return "".join(response_parts(problem, prompt))


def response_parts(problem: Problem, prompt: PromptSettings = PLAIN) -> tuple[str, str]:
    """The working of such a response, and what follows it: the answer as it is to be given.

    Raises:
        ValueError: the problem has no solution.
    """
    if problem.solution is None:
        raise ValueError(f"problem {problem.problem_id} has no worked solution")
    working = f"{THINK} {problem.solution} {END_THINK}" if problem.solution else f"{THINK} {END_THINK}"
    if problem.answer_type == "program":
        return working, f"{FENCE}{problem.answer}{END_FENCE}"
    if prompt.response is None:
        return working, f"{BOXED}{problem.answer}}}"
    before, _, after = prompt.response.partition("{answer}")
    told, solution, between = before.rpartition("{solution}")
    return (told + solution).replace("{solution}", problem.solution), f"{between}{problem.answer}{after}"


def opening(problem: Problem, prompt: PromptSettings = PLAIN) -> str:
    """What stands in such a response between the working and the answer."""
    if problem.answer_type == "program" or prompt.response is None:
        return END_THINK + (FENCE if problem.answer_type == "program" else BOXED)
    return prompt.response.partition("{answer}")[0].rpartition("{solution}")[2]


def conversation(tokenizer: Any, problem: Problem, prompt: PromptSettings = PLAIN) -> list[dict[str, str]]:
    """The chat turns of a prompt to the model that the tokenizer belongs to."""
    system = prompt.system
    if system is None and tokenizer.chat_template != CHAT_TEMPLATE:
        system = SYSTEM["program" if problem.answer_type == "program" else "other"]
    turns = [{"role": "system", "content": system}] if system else []
    for shot in prompt.shots:
        turns += [{"role": "user", "content": prompt.user.replace("{problem}", shot.user)}, {"role": "assistant", "content": shot.assistant}]
    return [*turns, {"role": "user", "content": prompt.user.replace("{problem}", problem.prompt)}]


def prompt_ids(tokenizer: Any, problem: Problem, prompt: PromptSettings = PLAIN, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
    """Token ids of the prompt, up to where the response starts, through the tokenizer's own chat template, which is shown the schemas of `tools`.

    A base model, whose tokenizer has none, gets the same messages as plain text, each followed by an empty line.
    """
    return turns_ids(tokenizer, conversation(tokenizer, problem, prompt), tools)


def turns_ids(tokenizer: Any, turns: Sequence[Mapping[str, str]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
    """Token ids of chat turns, up to where the assistant's next one starts. See `prompt_ids`."""
    if tokenizer.chat_template is None:
        return tokenizer("".join(f"{turn['content']}\n\n" for turn in turns))["input_ids"]
    from jinja2 import TemplateError  # what chat templates are written for

    try:
        text = tokenizer.apply_chat_template(turns, tools=list(tools) or None, tokenize=False, add_generation_prompt=True)
    except TemplateError:  # a template that knows no system message
        alone = [{"role": "user", "content": "\n\n".join(turn["content"] for turn in turns)}]
        text = tokenizer.apply_chat_template(alone, tools=list(tools) or None, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def response_ids(tokenizer: Any, problem: Problem, prompt: PromptSettings = PLAIN) -> list[int]:
    """Token ids of the worked solution, end-of-turn token included."""
    return [*tokenizer(response(problem, prompt), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def working_length(tokenizer: Any, problem: Problem, prompt: PromptSettings = PLAIN) -> int:
    """How many of `response_ids` begin in the working, before the answer."""
    working, answer = response_parts(problem, prompt)
    places = tokenizer(working + answer, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return sum(begin < len(working) for begin, _ in places)
