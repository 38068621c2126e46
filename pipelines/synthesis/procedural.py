"""New problems from the generator that made the weak ones, at the level where they are weak.

A topic belongs to the generators that its rows name as their source; the topic "level N" says at which level to draw.
Answers come from the generator, so nothing has to be voted on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines import seeding
from pipelines.errors import UserError
from pipelines.records import Problem
from pipelines.synthesis.proposals import Proposals
from pipelines.synthesis.weakness import Topic, allocate

Source = Callable[[Any, int, str, Path], Iterable[Any]]
_LEVEL = re.compile(r"level (\d+)")


def propose(weak: Sequence[Topic], budget: int, generators: Mapping[str, Any], sources: Mapping[str, Source], seed: int, root: Path) -> Proposals:
    """Draw `budget` problems, spread over the weak topics in proportion to failure.

    generators: name of a source -> its settings. sources: kind -> source, as `pipelines.sources.SOURCES`.
    """
    proposals = Proposals()
    able = []
    for topic in weak:
        if any(problem.source in generators for problem in topic.weakest):
            able.append(topic)
        else:
            proposals.notes.append(f"{topic.domain} {', '.join(topic.topics)}: no generator makes such problems")
    for topic, count in zip(able, allocate(budget, [1 - topic.pass_rate for topic in able]), strict=True):
        makers = Counter(problem.source for problem in topic.weakest if problem.source in generators)
        names = sorted(makers)
        for name, share in zip(names, allocate(count, [makers[name] for name in names]), strict=True):
            settings = generators[name]
            drawn = _draw(topic, name, share, settings, sources[settings.kind], seed, root, proposals) if share else []
            proposals.problems += drawn
            key = (topic.domain, topic.topics)
            proposals.proposed[key] = proposals.proposed.get(key, 0) + len(drawn)
    return proposals


def _draw(topic: Topic, name: str, count: int, settings: Any, source: Source, seed: int, root: Path, proposals: Proposals) -> list[Problem]:
    """`count` new problems like those of `topic`; fewer, with a note, if the generator runs dry."""
    update: dict[str, Any] = {"count": count}
    levels = [int(found[1]) for label in topic.topics if (found := _LEVEL.fullmatch(label))]
    if levels and hasattr(settings, "levels"):
        update["levels"] = {levels[0]: 1.0}
    label = ("synthesis", name, topic.domain, *topic.topics)
    parents = [problem.problem_id for problem in topic.weakest if problem.source == name]
    order = seeding.generator(seed, *label, "parents").permutation(len(parents))
    drawn: list[Problem] = []
    try:
        for problem in source(settings.model_copy(update=update), seeding.key(seed, *label), name, root):
            if isinstance(problem, Problem):
                parent = parents[order[len(drawn) % len(parents)]]
                source_id = "/".join(("synthesis", name, *topic.topics, str(len(drawn))))
                drawn.append(replace(problem, source=f"synthesis/{name}", source_id=source_id, parents=(parent,)))
    except UserError as error:
        proposals.notes.append(f"{topic.domain} {', '.join(topic.topics)}: {error}")
    return drawn
