"""One answer to one question."""

from __future__ import annotations

from typing import Any

from pipelines import prompting
from pipelines.config.common import PromptSettings
from pipelines.generation import Engine
from pipelines.records import Problem
from pipelines.rl.episodes import Episode, Prompt, Task


class SingleTurn:
    """The policy answers once, and its answer is judged."""

    def prompt(self, tokenizer: Any, problem: Problem, settings: PromptSettings) -> Prompt:
        """See `Environment.prompt`."""
        return Prompt(prompting.prompt_ids(tokenizer, problem, settings), prompting.conversation(tokenizer, problem, settings))

    async def run(self, task: Task, path: int, engine: Engine) -> Episode:
        """See `Environment.run`."""
        start = task.start
        turn = await engine.sample([token for segment in start for token in segment.ids], (*task.key, path), None, task.prompt.messages)
        opening = engine.tokenizer.decode([token for segment in task.opening for token in segment.ids]) if task.opening else ""
        text = opening + turn.text
        return Episode([*start, turn.segment], turn.finish_reason, text, text)
