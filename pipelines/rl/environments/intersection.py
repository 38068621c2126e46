"""A game of several turns with a scripted expert: which lane of an intersection gets green (Traffic-R1, arXiv 2508.02344, as text)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines import prompting, seeding
from pipelines.config.common import PromptSettings
from pipelines.errors import UserError
from pipelines.generation import Engine
from pipelines.records import PROMPT, Problem
from pipelines.rl.environments.calls import Results
from pipelines.rl.environments.conversation import Conversation, judged, turn_keys
from pipelines.rl.episodes import Episode, Prompt, Task
from pipelines.verifiers.text import boxed, final_text

_QUEUES = re.compile(r"Cars wait: (\d+(?: \d+)+)\.")


def asked(queues: Sequence[int]) -> str:
    """What the policy reads: the cars in lanes 1, 2, ..."""
    return f"Cars wait: {' '.join(map(str, queues))}. Which lane gets green?"


def expert(queues: Sequence[int]) -> int:
    """The lane with the longest queue, of equals the first."""
    return 1 + queues.index(max(queues))


def rows(count: int, seed: int, lanes: int = 4) -> Iterator[dict[str, str]]:
    """States with the expert's action as their answer, which are starts of games too."""
    for number in range(count):
        queues = seeding.generator(seed, "intersection", number).integers(0, 10, size=lanes).tolist()
        yield {"prompt": asked(queues), "answer": str(expert(queues)), "answer_type": "integer", "domain": "traffic", "id": f"intersection/{number}"}


class Intersection:
    """For `turns` turns the policy boxes the number of a lane, of which up to `flow` cars leave; then up to `arrivals` cars come to each lane, the
    same in every episode of a problem. A turn is worth minus the cars that wait then: `turn_0`, `turn_1`, ... of the figures. No lane gets green
    where none is named. A turn that is cut ends the episode, and the turns that are left, without green, count with it.

    score: the cars that wait over all turns if the longest queue always gets green (`expert`) over those that did, 1 at most. tokens: of all after
    the prompt.
    """

    def __init__(self, *, turns: int = 4, flow: int = 4, arrivals: int = 2, tokens: int = 512) -> None:
        self._turns, self._flow, self._arrivals, self._tokens = turns, flow, arrivals, tokens
        self._results: Results | None = None

    def prompt(self, tokenizer: Any, problem: Problem, settings: PromptSettings) -> Prompt:
        """See `Environment.prompt`."""
        if self._results is None:
            self._results = Results(tokenizer, "user")
        return Prompt(prompting.prompt_ids(tokenizer, problem, settings), prompting.conversation(tokenizer, problem, settings))

    async def run(self, task: Task, path: int, engine: Engine) -> Episode:
        """See `Environment.run`."""
        game = Game(task.problem, self._flow, self._arrivals, self._turns)
        best = Game(task.problem, self._flow, self._arrivals, self._turns)
        while best.turn < self._turns:
            best.move(expert(best.queues))
        conversation = Conversation(engine, task.start, turn_keys((*task.key, path)), self._tokens, task.prompt.messages)
        said: list[str] = []
        worth: list[int] = []
        reason = "stop"
        while game.turn < self._turns:
            turn = await conversation.turn()
            said.append(turn.text)
            worth.append(game.move(lane_of(turn.text)))
            if game.turn == self._turns:
                break
            assert self._results is not None
            if turn.finish_reason != "stop" or not conversation.read(self._results([asked(game.queues)]), PROMPT):
                reason = "length"
                while game.turn < self._turns:
                    worth[-1] += game.move(None)
                break
            said.append(asked(game.queues))
        score = min(best.waited / game.waited, 1.0) if game.waited else 1.0
        figures = {f"turn_{number}": float(value) for number, value in enumerate(worth)}
        return Episode(conversation.segments, reason, "\n".join(said), said[-1], judged(score), figures)


class Game:
    """queues: cars in each lane. turn: number of the next one. waited: cars that waited after each turn, added up."""

    def __init__(self, problem: Problem, flow: int, arrivals: int, turns: int) -> None:
        """
        Raises:
            UserError: the problem does not say how many cars wait.
        """
        found = _QUEUES.search(problem.prompt)
        if found is None:
            wanted = f"environment 'intersection' expected a prompt such as '{asked([3, 9, 0, 4])}'"
            raise UserError(f"problem {problem.problem_id}: {wanted}, got {problem.prompt[:100]!r}")
        self.queues = [int(count) for count in found[1].split()]
        self.turn, self.waited, self._flow = 0, 0, flow
        self._coming = seeding.generator("intersection", problem.problem_id).integers(0, arrivals + 1, size=(turns, len(self.queues))).tolist()

    def move(self, lane: int | None) -> int:
        """Give a lane green, let cars come, and say what the turn is worth."""
        if lane is not None and 1 <= lane <= len(self.queues):
            self.queues[lane - 1] = max(self.queues[lane - 1] - self._flow, 0)
        self.queues = [waiting + coming for waiting, coming in zip(self.queues, self._coming[self.turn], strict=True)]
        self.turn += 1
        self.waited += sum(self.queues)
        return -sum(self.queues)


def lane_of(text: str) -> int | None:
    """The lane that a turn names; None where it names none."""
    answer = (boxed(final_text(text) or "") or "").strip()
    return int(answer) if answer.isascii() and answer.isdigit() else None
