"""The resolved plan as text: each stage with what it reads, makes and decides, and whether it is current."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines import graph
from pipelines.config import Params, resolve
from tasks import planning, settings, versioning


def plan(project: Path) -> Iterator[str]:
    """Lines for people; nothing on the disk changes.

    Raises:
        UserError: params do not hold; a line for all that is wrong.
    """
    from pipelines.checks.outside import left_open

    loaded = settings.params(project)
    stages = settings.stages(loaded)
    running: list[str] = []
    for stage in stages:
        answer = versioning.look(project, stage)
        above = [name for name in running if settings.feeds(loaded, name, stage)]
        yield f"{stage}: {_state(answer, above)}"
        if answer.state == "stale" or above:
            running.append(stage)
        models = loaded.rl.stages[stage.partition("@")[2]].models if "@" in stage else ()
        yield "    reads  " + ", ".join(dict.fromkeys(path.as_posix() for path in graph.inputs(stage, *models)))
        yield "    makes  " + ", ".join(path.as_posix() for path in graph.outputs(stage))
        yield from (f"    {line}" for line in _decided(loaded, stage))
    for line in left_open(loaded, project):
        yield f"not known yet: {line}"
    yield f"params.yaml holds: {len(stages)} stages, {len(running)} to run"


def _state(answer: versioning.Answer, above: list[str]) -> str:
    """Whether the stage runs, and why."""
    if answer.state == "current":
        return f"current, unless {' or '.join(above)} makes something else" if above else "current"
    return f"{'taken from the cache' if answer.state == 'restored' else 'runs'} ({planning.told(answer.reasons)})"


def _decided(loaded: Params, stage: str) -> Iterator[str]:
    """The settings that decide most, resolved."""
    given: Any = resolve(loaded, stage)
    kind = stage.partition("@")[0]
    yield from {
        "sources": _sources, "curation": _curation, "base": _base, "sft": _sft, "difficulty": _difficulty, "synthesis": _synthesis, "rl": _rl,
        "merging": _merging, "evaluation": _evaluation, "report": lambda given: [f"samples {given.samples}"],
    }[kind](given)  # fmt: skip


def _sources(given: Any) -> Iterator[str]:
    for role in ("train", "benchmarks"):
        for name, source in getattr(given, role).items():
            what = f"{source.count:,}" if hasattr(source, "count") else f"{source.path}, verifier {source.verifier}"
            task = f" {source.task}" if source.kind == "reasoning_gym" else ""
            yield f"{role} {name}: {source.kind}{task}, {what}"


def _curation(given: Any) -> Iterator[str]:
    yield f"steps {', '.join(given.steps)}" + (f"; preset {given.preset}" if given.preset else "")
    yield f"splits {_pairs(given.splits)}"


def _base(given: Any) -> Iterator[str]:
    if given.model:
        yield f"model {given.model}" + (f" at {given.revision}" if given.revision else "")
        return
    shape = given.architecture
    yield f"from scratch: {shape.family}, {shape.layers} layers of {shape.hidden_size}, vocabulary {shape.vocab_size}, context {shape.context}"
    yield from _sft(given)


def _sft(given: Any) -> Iterator[str]:
    train = given.train
    yield f"epochs {train.epochs:g}, batches of {train.batch_size}, {train.optimiser.name} at {train.optimiser.lr:g}"


def _difficulty(given: Any) -> Iterator[str]:
    yield f"{given.samples} samples, stop {given.stop}, band {list(given.band)}, limit {_pairs(given.limit) or 'none'}"
    yield _generation(given.generation)


def _synthesis(given: Any) -> Iterator[str]:
    asked = f" by {given.teacher.model}" if given.method == "teacher" else ""
    yield f"{given.method}{asked}, budget {given.budget}, topics below {given.weak_below:g}"


def _rl(given: Any) -> Iterator[str]:
    changed = "".join(f"; {slot}: {value}" for slot, value in given.overrides.items())
    yield f"from {given.init}, reference {given.reference}, domains {', '.join(given.domains)}"
    yield f"recipe {given.recipe}{changed}"
    yield f"{given.steps} steps of {given.prompts_per_step} x {given.group_size}, {given.optimiser.name} at {given.optimiser.lr:g}"
    yield f"{_generation(given.generation)}, {given.precision}, {given.processes} process{'es' if given.processes > 1 else ''}"


def _merging(given: Any) -> Iterator[str]:
    yield f"{given.method} ({_pairs(given.settings) or 'its defaults'}) of {', '.join(given.models)} on {given.base}"
    if given.search:
        yield f"search: {', '.join(each.method for each in given.search.candidates)}, budget {given.search.budget}"


def _evaluation(given: Any) -> Iterator[str]:
    yield f"models {', '.join(given.models)}; {given.samples} samples, k {', '.join(map(str, given.ks))}"
    yield _generation(given.generation)
    yield f"gate: {given.gate.candidate} against {given.gate.against}, better on {', '.join(given.gate.improve) or 'none'}"


def _generation(given: Any) -> str:
    asked = f" asking {given.server.model}" if given.engine == "server" else ""
    return f"engine {given.engine}{asked}, {given.max_new_tokens} tokens at temperature {given.temperature:g}"


def _pairs(given: Mapping[Any, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in given.items())
