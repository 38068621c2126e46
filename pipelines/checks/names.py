"""Names and combinations in params.yaml that need no library and no disk to judge: domains, verifiers and their settings, shares, endpoints."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pipelines import methods
from pipelines.chat import TEACHER_URL
from pipelines.config import Params
from pipelines.config.checking import nearest
from pipelines.config.common import GenerationSettings
from pipelines.config.curation import CurationSettings, GradeStage, SynthesiseStage
from pipelines.config.evaluation import MergeStage
from pipelines.config.extrapolation import ExtrapolateStage
from pipelines.config.preference import PreferenceStage
from pipelines.config.reward_model import RewardModelStage
from pipelines.config.rl import SamplingStage
from pipelines.config.sampling import SampleStage
from pipelines.config.selection import SelectStage
from pipelines.config.sources import GENERATORS, FileSource
from pipelines.config.stage import FILES, ROLLOUTS, Judging, Reading
from pipelines.config.training import SupervisedStage
from pipelines.curation.histories import SCORES
from pipelines.curation.judging import refuse_without_endpoint
from pipelines.endpoint import GENERATION_URL, Endpoint
from pipelines.errors import UserError
from pipelines.sources import DOMAINS
from pipelines.verifiers import VERIFIERS, settings
from pipelines.verifiers.judge import URL as JUDGE_URL

T = TypeVar("T")
Faults = Iterator[tuple[str, str]]
"""Key of params.yaml -> what is wrong there, and what was expected."""


def faults(params: Params) -> Faults:
    yield from _domains(params)
    for key, curation in curations(params).items():
        yield from _shares(key, curation, params)
    for key, source in sources(params).items():
        if isinstance(source, FileSource):
            yield from verifier(key, source)
    for name, stage in of_kind(params, SynthesiseStage):
        for generator, source in (stage.generators or {}).items():
            if source.kind not in GENERATORS:
                yield f"stages.{name}.generators.{generator}.kind", f"'{source.kind}' generates nothing; choose one of {', '.join(GENERATORS)}"
    for name, stage in of_kind(params, SelectStage):
        try:
            methods.bind("score", SCORES, stage.score, stage.settings)
        except UserError as error:
            yield f"stages.{name}.{'settings' if stage.score in SCORES else 'score'}", str(error).removeprefix("score: ")
    limited = {name for name, stage in of_kind(params, GradeStage) if stage.limit}
    for name, stage in params.stages.items():
        for reference in stage.rows_read:
            grader, _, file = reference.partition("/")
            if file == "ungraded" and grader not in limited:
                yield f"stages.{name}", f"it reads {reference}, the rows beyond the limit of stage {grader}, which has none"


def of_kind(params: Params, kind: type[T]) -> Iterator[tuple[str, T]]:
    """Name and settings of every stage of a kind."""
    return ((name, stage) for name, stage in params.stages.items() if isinstance(stage, kind))


def sources(params: Params) -> dict[str, Any]:
    """Key of params.yaml -> every source."""
    roles = {"train": params.sources.train, "benchmarks": params.sources.benchmarks}
    return {f"sources.{role}.{name}": source for role, found in roles.items() for name, source in found.items()}


def domains(params: Params) -> set[str] | None:
    """Every domain that training problems can have; None where rows say it themselves."""
    found = set()
    for source in params.sources.train.values():
        if isinstance(source, FileSource) and "domain" in source.fields:
            return None
        found.add(source.domain if isinstance(source, FileSource) else DOMAINS[source.kind])
    return found


def generations(params: Params) -> dict[str, GenerationSettings]:
    """Key of params.yaml -> how a stage samples, for those that do."""
    found = {"evaluation.generation": params.evaluation.generation}
    for name, stage in params.stages.items():
        if isinstance(stage, GradeStage | SampleStage | SamplingStage):
            found[f"stages.{name}.generation"] = stage.generation
        if isinstance(stage, GradeStage) and stage.strong and stage.strong.generation:
            found[f"stages.{name}.strong.generation"] = stage.strong.generation
        if isinstance(stage, SampleStage) and stage.reflect and stage.reflect.generation:
            found[f"stages.{name}.reflect.generation"] = stage.reflect.generation
        if isinstance(stage, PreferenceStage) and stage.critic.completions:
            found[f"stages.{name}.critic.generation"] = stage.critic.generation
        if isinstance(stage, MergeStage | ExtrapolateStage) and stage.search:
            found[f"stages.{name}.search.generation"] = stage.search.generation
    return found


def lacking(stage: PreferenceStage) -> list[str]:
    """Names of what its responses are known to lack (rl.tensors.Asks), whatever stands in its files."""
    files_alone = all(name.endswith(FILES) for name in stage.data)
    rollouts_alone = all(name.endswith(ROLLOUTS) for name in stage.data)
    found = ["BEHAVIOUR"] if files_alone and stage.behaviour is None else []
    return [*found, "PROBLEM"] if rollouts_alone else found


def curations(params: Params) -> dict[str, CurationSettings]:
    """Key of params.yaml -> how rows are curated."""
    own = {f"stages.{name}.curation": stage.curation for name, stage in of_kind(params, SynthesiseStage) if stage.curation}
    return {"curation": params.curation, **own}


def endpoints(params: Params) -> Faults:
    """Endpoints that params ask and the environment does not name, or names wrongly."""
    for key, curation in curations(params).items():
        try:
            refuse_without_endpoint(curation, there=bool(os.environ.get(TEACHER_URL)))
        except UserError as error:
            yield f"{key}.steps", str(error).removeprefix("curation: ")
    needed = {}
    for name, stage in of_kind(params, SynthesiseStage):
        if stage.method == "teacher" and stage.budget:
            needed[f"stages.{name}.method"] = "teacher", TEACHER_URL
    for name, stage in of_kind(params, PreferenceStage):
        if stage.pairs and stage.pairs.judge and not stage.pairs.judge.stage:
            needed[f"stages.{name}.pairs.judge"] = "judge", JUDGE_URL
    for name, stage in of_kind(params, RewardModelStage):
        if stage.paired and stage.pairs.judge and not stage.pairs.judge.stage:
            needed[f"stages.{name}.pairs.judge"] = "judge", JUDGE_URL
    judging = [stage.judge for _, stage in of_kind(params, Judging)]
    judging += [stage.search.judge for _, stage in of_kind(params, MergeStage) if stage.search]
    asking = {"train": not judging or None in judging, "benchmarks": params.evaluation.judge is None}
    for key, source in sources(params).items():
        if isinstance(source, FileSource) and source.verifier == "judge" and asking[key.split(".")[1]]:
            needed[f"{key}.verifier"] = "judge", JUDGE_URL
    for key, generation in generations(params).items():
        if generation.engine == "server":
            needed[f"{key}.engine"] = "server", GENERATION_URL
            if not generation.server.model:
                yield f"{key}.server.model", "is empty; name the model as the endpoint knows it"
    for key, (value, variable) in needed.items():
        if not os.environ.get(variable):
            yield key, f"'{value}' asks the OpenAI-compatible endpoint that {variable} names, which is not set"
    for variable in (TEACHER_URL, JUDGE_URL, GENERATION_URL):
        if url := os.environ.get(variable):
            try:
                Endpoint(url)
            except UserError as error:
                yield variable, str(error)


def _domains(params: Params) -> Faults:
    known = domains(params)
    trained = {"base": params.base.train.goal} | {f"stages.{name}": stage.train.goal for name, stage in of_kind(params, SupervisedStage)}
    asked: dict[str, Iterable[str]] = {f"{name}.train.goal.solved": goal.solved for name, goal in trained.items() if goal}
    asked |= {f"stages.{name}.limit": stage.limit for name, stage in of_kind(params, GradeStage)}
    if any(reference.endswith(FILES) for stage in params.stages.values() for reference in stage.rows_read):
        known = None
    for name, reading in of_kind(params, Reading):
        wheres = {f"data.{reference}.where": rows.where for reference, rows in reading.data.items()} | {"where": reading.where}
        asked |= {f"stages.{name}.{key}.domain": where.domain or () for key, where in wheres.items()}
    for key, names in asked.items():
        yield from _unknown(key, names, "domain of no source in sources.train", known)


def _shares(key: str, curation: CurationSettings, params: Params) -> Faults:
    if curation.mix and "mix" in curation.steps:
        what, known = ("source", set(params.sources.train)) if curation.mix.by == "source" else ("domain", domains(params))
        yield from _unknown(f"{key}.mix.shares", curation.mix.shares, f"{what} of no training problem", known)


def _unknown(key: str, names: Iterable[str], what: str, known: Iterable[str] | None) -> Faults:
    for name in names:
        if known is not None and name not in known:
            yield key, f"'{name}' is the {what}; there are {', '.join(sorted(known))}{nearest(name, sorted(known))}"


def verifier(key: str, source: FileSource) -> Faults:
    """The verifier of a source's rows, and the settings that the source gives it, fixed or mapped."""
    if source.verifier not in VERIFIERS:
        yield f"{key}.verifier", f"there is no '{source.verifier}'{nearest(source.verifier, VERIFIERS)} Known: {', '.join(VERIFIERS)}"
        return
    mapped = [field.partition(".")[2] for field in source.fields if field.startswith("verifier_args.")]
    if "verifier" in source.fields:
        return  # rows name their own, and the first of them is looked at
    for name, value in source.verifier_args.items():
        if wrong := settings.objection(source.verifier, name, value):
            yield f"{key}.verifier_args.{name}", wrong
    for name in mapped:
        if wrong := settings.objection(source.verifier, name):
            yield f"{key}.fields.verifier_args.{name}", wrong
