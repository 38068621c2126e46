"""One answer, which thinking may not crowd out."""

from __future__ import annotations

from pipelines import prompting
from pipelines.generation import Engine
from pipelines.records import GUIDE, Segment
from pipelines.rl.environments.single_turn import SingleTurn
from pipelines.rl.episodes import Episode, Task


class ForcedAnswer(SingleTurn):
    """The policy answers once; where it is still thinking when all but `tokens` of `max_new_tokens` are used up, its thought is closed, its answer
    opened, and it gives that in what is left (GLM-4.1V-Thinking, arXiv 2507.01006). What closes and opens does not train. tokens: half of
    `max_new_tokens` at most, with what closes and opens. The figure `forced` says whether it came to that.
    """

    def __init__(self, *, tokens: int = 64) -> None:
        self._tokens = tokens

    async def run(self, task: Task, path: int, engine: Engine) -> Episode:
        """See `Environment.run`."""
        settings, start = engine.settings, task.start
        closing = prompting.opening(task.problem, settings.prompt)
        ids = engine.tokenizer(closing, add_special_tokens=False)["input_ids"]
        last = min(self._tokens, settings.max_new_tokens // 2) - len(ids)
        before = [token for segment in start for token in segment.ids]
        if last < 1:  # no room for an answer either way
            return await super().run(task, path, engine)
        thought = await engine.sample(before, (*task.key, path), settings.max_new_tokens - len(ids) - last, task.prompt.messages)
        text = engine.tokenizer.decode([token for segment in task.opening for token in segment.ids]) + thought.text
        if thought.finish_reason == "stop":
            return Episode([*start, thought.segment], "stop", text, text, figures={"forced": 0.0})
        forced = prompting.END_THINK not in text if prompting.END_THINK in closing else closing.strip() not in text
        added = [Segment(GUIDE, ids)] if forced else []
        limit = last if forced else last + len(ids)
        so_far = [*before, *thought.segment.ids, *(token for segment in added for token in segment.ids)]
        answer = await engine.sample(so_far, (*task.key, path, 1), limit, task.prompt.messages)
        text += (closing if forced else "") + answer.text
        segments = [*start, thought.segment, *added, answer.segment]
        return Episode(segments, answer.finish_reason, text, text, figures={"forced": float(forced)})
