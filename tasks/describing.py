"""The resolved plan as text: each stage with what it reads, makes and decides, and whether it is current."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines import graph, paths
from pipelines.graph import Graph
from pipelines.store import read_json
from tasks import planning, settings, versioning

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of a weight."""


def plan(project: Path) -> Iterator[str]:
    """Lines for people; nothing on the disk changes, but that data/dvc.yaml comes in line with params.

    Raises:
        UserError: params do not hold; a line for all that is wrong.
    """
    from pipelines.checks.outside import left_open

    loaded = settings.params(project)
    stages = graph.graph(loaded)
    versioning.align(project, loaded, stages)
    yield drawn(stages)
    running: list[str] = []
    for (name, stage), answer in zip(stages.items(), list(versioning.look_all(project, stages.values())), strict=True):
        above = [other for other in running if stages[other].feeds(stage)]
        yield f"{name}: {_state(answer, above)}"
        if answer.state == "stale" or above:
            running.append(name)
        yield "    reads  " + ", ".join(path.as_posix() for path in stage.reads)
        yield "    makes  " + ", ".join(path.as_posix() for path in stage.makes)
        yield from (f"    {line}" for line in DECIDED[stage.kind](stage.settings))
        yield from (f"    {line}" for line in _keeps(project, stage.settings))
    for line in left_open(loaded, project):
        yield f"not known yet: {line}"
    yield f"params.yaml holds: {len(stages)} stages, {len(running)} to run"


def drawn(stages: Graph) -> str:
    """The graph in a line: `sft -> difficulty -> code, math -> merged`, each stage behind all that it reads; those between two arrows need not
    wait for each other."""
    depth: dict[str, int] = {}
    for name, stage in stages.items():
        depth[name] = 1 + max((depth[other] for other in depth if stages[other].feeds(stage)), default=0)
    return " -> ".join(", ".join(name for name in depth if depth[name] == level) for level in range(1, max(depth.values()) + 1))


def mermaid(stages: Graph) -> str:
    """The graph as a drawing in Mermaid's words, an arrow for each stage that another reads; the report, which reads all, is left out."""
    shown = [name for name in stages if name != "report"]
    arrows = [f"    {one} --> {other}" for one in shown for other in shown if stages[one].feeds(stages[other])]
    return "\n".join(["graph LR", *arrows])


def _state(answer: versioning.Answer, above: list[str]) -> str:
    """Whether the stage runs, and why."""
    if answer.state == "current":
        return f"current, unless {' or '.join(above)} makes something else" if above else "current"
    return f"{'taken from the cache' if answer.state == 'restored' else 'runs'} ({planning.told(answer.reasons)})"


def _keeps(project: Path, given: Any) -> Iterator[str]:
    """What a stage keeps along its training, and how much disk that takes."""
    if keep := getattr(given, "keep", None):
        size, start = BYTES[keep.dtype], project / paths.model(given.init)
        told = f"{keep.most * size} bytes a parameter at most"
        if (start / "config.json").is_file():
            config = read_json(start / "config.json")
            stored = sum(file.stat().st_size for file in start.glob("*.safetensors")) / BYTES[config.get("dtype") or config["torch_dtype"]]
            told = f"{stored * size * keep.most / 1e6:,.0f} MB at most"
        yield f"keeps the weights after every {keep.every} steps, {keep.most} times at most, in {keep.dtype}: {told}"


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
    yield from _training(given)


def _sft(given: Any) -> Iterator[str]:
    yield f"from {given.init}; {_data(given)}"
    more = {
        f"weights {_pairs(given.weights)}": given.weights,
        f"answers weigh {given.answer_weight:g}": given.answer_weight != 1,
        f"of rollouts {given.accept.verdict} answer": given.accept.verdict != "right",
        f"its own prediction counts up to {given.confidence.most if given.confidence else 0:g}": given.confidence,
        "pairs as refusals": given.refusals,
        "; ".join(f"{each.times} times{_where(each.where)}" for each in given.duplicate): given.duplicate,
        f"adapters of rank {given.lora.rank if given.lora else 0}": given.lora,
        f"{given.processes} processes": given.processes > 1,
    }
    if said := [text for text, there in more.items() if there]:
        yield "; ".join(said)
    yield from _training(given)


def _pretrain(given: Any) -> Iterator[str]:
    scored = f"; scores by {given.scored.by}" if given.scored else ""
    yield f"from {given.init}; {_data(given)}; loss on the {given.loss} of problems{scored}"
    yield from _training(given)


def _training(given: Any) -> Iterator[str]:
    train = given.train
    held = f"; loss measured on {train.held_out.problems} problems every {train.held_out.every} steps" if train.held_out else ""
    yield f"epochs {train.epochs:g}, batches of {train.batch_size}, {train.optimiser.name} at {train.optimiser.lr:g}{held}"


def _grade(given: Any) -> Iterator[str]:
    yield f"by {given.init}; {_data(given)}"
    yield f"{given.samples} samples, stop {given.stop}, band {list(given.band)}, limit {_pairs(given.limit) or 'none'}"
    yield _generation(given.generation)
    if strong := given.strong:
        yield f"then by {strong.model}: {strong.samples} samples, band {list(strong.band)}; {_generation(strong.generation or given.generation)}"


def _sample(given: Any) -> Iterator[str]:
    yield f"by {given.init}; {_data(given)}"
    reflected = f"; {given.reflect.by or given.init} corrects {given.reflect.per_problem} wrong answers of each at most" if given.reflect else ""
    yield f"{given.samples} samples, hands on {given.rows} rows, as solution the {given.choose} right answer{reflected}"
    yield _generation(given.generation)


def _select(given: Any) -> Iterator[str]:
    yield f"{_data(given)}"
    bound = [*([f"of at least {given.at_least:g}"] if given.at_least is not None else []), *([f"at most {given.most}"] if given.most else [])]
    yield f"by {given.score} ({_pairs(given.settings) or 'its defaults'}), {', '.join(bound)}"


def _critique(given: Any) -> Iterator[str]:
    yield f"{_data(given)}; {given.solutions} solutions of each problem and stage"


def _target(given: Any) -> Iterator[str]:
    yield f"{_data(given)}, by what {given.weak} lacks below a pass rate of {given.below:g}"
    skills = f"skills by {given.skills.model}" if given.skills else "topics as skills"
    yield f"{skills}; " + (f"budget {given.budget}" if given.budget else f"{given.per_missing} rows for each that is missing")


def _synthesise(given: Any) -> Iterator[str]:
    yield _data(given)
    asked = f" by {given.teacher.model}" if given.method == "teacher" else ""
    yield f"{given.method}{asked}, budget {given.budget}, topics below {given.weak_below:g}"


def _rl(given: Any) -> Iterator[str]:
    yield f"from {given.init}, reference {given.reference or given.init}; {_data(given)}"
    yield _recipe(given)
    yield f"{given.steps} steps of {given.prompts_per_step} x {given.group_size}, {given.optimiser.name} at {given.optimiser.lr:g}"
    yield f"{_generation(given.generation)}, {given.precision}, {_processes(given)}"


def _distil(given: Any) -> Iterator[str]:
    yield f"from {given.init}, taught by " + (given.stored or _pairs(given.teachers)) + f"; {_data(given)}"
    yield _recipe(given)
    size = f"{given.prompts_per_step} x {given.group_size}" if given.leaves_rollouts else f"{given.prompts_per_step}"
    yield f"{given.steps} steps of {size}, {given.optimiser.name} at {given.optimiser.lr:g}"
    yield (f"{_generation(given.generation)}, " if given.leaves_rollouts else "") + f"{given.precision}, {_processes(given)}"


def _preference(given: Any) -> Iterator[str]:
    yield f"from {given.init}, reference {given.reference or given.init}; {_data(given)}"
    yield _recipe(given)
    made = "as they were scored" if given.pairs is None else f"{given.pairs.per_problem} pairs a prompt, {given.pairs.choose}"
    judge = f" as {given.pairs.judge.stage or given.pairs.judge.model} judges" if given.pairs and given.pairs.judge else ""
    steps = "one pass" if given.steps is None else f"{given.steps} steps"
    yield f"responses {made}{judge}; {steps} of {given.prompts_per_step}, {given.optimiser.name} at {given.optimiser.lr:g}"
    yield f"{given.precision}, {_processes(given)}"


def _reward_model(given: Any) -> Iterator[str]:
    yield f"from {given.init}; {_data(given)}; loss {given.loss}" + (f", {given.pairs.per_problem} pairs a prompt" if given.paired else "")
    yield f"measured on {given.held_out:g} of the problems, calibrated on {given.calibration:g}; {_processes(given)}"
    yield from _training(given)


def _recipe(given: Any) -> str:
    return f"recipe {given.recipe}" + "".join(f"; {slot}: {value}" for slot, value in given.overrides.items())


def _processes(given: Any) -> str:
    return f"{given.processes} process{'es' if given.processes > 1 else ''}"


def _command(given: Any) -> Iterator[str]:
    yield f"from {given.init}; {_data(given)}"
    yield f"runs {' '.join(given.command)}" + (f" in {given.environment}" if given.environment else "")


def _merge(given: Any) -> Iterator[str]:
    yield f"{given.method} ({_pairs(given.settings) or 'its defaults'}) of {', '.join(given.models)} on {given.init}"
    if given.search:
        yield f"search: {', '.join(each.method for each in given.search.candidates)}, budget {given.search.budget}"


def _extrapolate(given: Any) -> Iterator[str]:
    yield f"{given.method} ({_pairs(given.settings) or 'its defaults'}) of the steps that {given.init} kept from {given.start} on"
    if given.search:
        yield f"search: read at {_pairs(given.search.grid)}, budget {given.search.budget}"
    else:
        yield f"read at step {given.target}"


def _evaluation(given: Any) -> Iterator[str]:
    yield f"models {', '.join(given.models)}; {given.samples} samples, k {', '.join(map(str, given.ks))}"
    yield _generation(given.generation)
    yield f"gate: {given.gate.candidate} against {given.gate.against}, better on {', '.join(given.gate.improve) or 'none'}"


def _report(given: Any) -> Iterator[str]:
    yield f"samples {given.samples}"


def _generation(given: Any) -> str:
    asked = f" asking {given.server.model}" if given.engine == "server" else ""
    return f"engine {given.engine}{asked}, {given.max_new_tokens} tokens at temperature {given.temperature:g}"


def _pairs(given: Mapping[Any, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in given.items())


def _data(given: Any) -> str:
    """`data difficulty, synthesis where domain math`."""
    shares = {name: f" {rows.share:g}" if rows.share else "" for name, rows in given.data.items()}
    return "data " + ", ".join(f"{name}{shares[name]}{_where(rows.where)}" for name, rows in given.data.items()) + _where(given.where)


def _where(where: Any) -> str:
    conditions = {name: value for name, value in where.model_dump().items() if value is not None}
    return " where " + ", ".join(f"{name} {_listed(value)}" for name, value in conditions.items()) if conditions else ""


def _listed(value: Any) -> str:
    return value if isinstance(value, str) else " or ".join(map(str, value))


DECIDED: dict[str, Callable[[Any], Iterator[str]]] = {
    "sources": _sources, "curation": _curation, "base": _base, "sft": _sft, "pretrain": _pretrain, "grade": _grade, "sample": _sample,
    "select": _select, "critique": _critique, "target": _target, "synthesise": _synthesise, "rl": _rl, "preference": _preference,
    "distil": _distil, "merge": _merge, "extrapolate": _extrapolate, "reward_model": _reward_model, "command": _command,
    "evaluation": _evaluation, "report": _report,
}  # fmt: skip
"""Kind -> lines of the settings that decide most, resolved."""
