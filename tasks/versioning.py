"""DVC, asked and told in process: is a stage current, can it be had from the cache, and record what it has just made.

The questions are those of `dvc repro`, in the same order: a stage whose command, code, params, data and outputs are as
data/dvc.lock says is current; one that the run cache knows is checked out; any other runs. `dvc repro` runs the one stage of dvc.yaml, which
is `touchstone run`. Under `dvc repro data/dvc.yaml` DVC does the asking and recording itself; what a stage starts from is compared before and
after all the same.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines import paths
from pipelines.config import Params
from pipelines.errors import UserError
from pipelines.graph import Graph, Stage
from pipelines.lineage import external
from pipelines.lineage.digests import files_below
from pipelines.lineage.manifests import parameters
from pipelines.store import read_json
from tasks import dvc_graph, identity

PIPELINE = "pipeline"
"""The stage of dvc.yaml, which runs those of data/dvc.yaml."""

State = Literal["current", "restored", "stale"]


@dataclass(frozen=True)
class Answer:
    """What DVC says of one stage; `reasons` name what has changed since it was recorded."""

    stage: str
    state: State
    reasons: tuple[str, ...] = ()


def under_dvc() -> bool:
    """Does DVC itself run the stage that this process is?"""
    return os.environ.get("DVC_STAGE", PIPELINE) != PIPELINE


def _load(repository: Any, stage: str) -> Any:
    """A stage of data/dvc.yaml."""
    return repository.stage.load_one(path=paths.GRAPH.as_posix(), name=stage)


@contextmanager
def _repository(project: Path) -> Iterator[Any]:
    """DVC's view of the project, with its exceptions as sentences for the user."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.CRITICAL)  # also turns its progress bars off
    configuration = {} if (project / ".git").exists() else {"core": {"no_scm": True}}
    try:
        # parts of DVC take the working directory for the project
        with chdir(project), Repo(str(project), config=configuration) as repository:
            yield repository
    except DvcException as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise UserError(f"DVC: {error}{cause}") from error


def look_all(project: Path, stages: Iterable[Stage]) -> Iterator[Answer]:
    """What `settle_all` would say of each stage, with nothing checked out and nothing recorded."""
    with _repository(project) as repository, repository.lock:
        found = _by_name(repository)
        for stage in stages:
            edited = identity.changed_since_written(project, stage.kind)
            reasons = _changes(project, stage, found[stage.name]) or tuple(edited)
            state = "current" if not reasons else "restored" if not edited and _in_cache(repository, found[stage.name]) else "stale"
            yield Answer(stage.name, state, reasons)


def _by_name(repository: Any) -> dict[str, Any]:
    """All stages of data/dvc.yaml. One by one, the file would be read again for each."""
    return {stage.name: stage for stage in repository.index.stages if stage.path_in_repo == paths.GRAPH.as_posix()}


def settle_all(project: Path, stages: Sequence[Stage], forced: Sequence[str] = ()) -> list[Answer]:
    """Is a stage current? If not, but the cache holds what it would make, its outputs are checked out and recorded. Each in turn, up to the
    first that has to run."""
    identity.write(project)
    answers: list[Answer] = []
    with _repository(project) as repository, repository.lock:
        found = _by_name(repository)
        _record_code(found[dvc_graph.CODE])
        for stage in stages:
            answers.append(_settle(project, repository, stage, found[stage.name], stage.name in forced))
            if answers[-1].state == "stale":
                break
    return answers


def _settle(project: Path, repository: Any, stage: Stage, found: Any, force: bool) -> Answer:
    if force:
        return Answer(stage.name, "stale", ("forced",))
    reasons = _changes(project, stage, found)
    if not reasons:
        return Answer(stage.name, "current")
    if _restore(repository, found):
        return Answer(stage.name, "restored", reasons)
    return Answer(stage.name, "stale", reasons)


def _record_code(code: Any) -> None:
    """Write into dvc.lock what the stage `code-identity` has made, as `dvc repro` does."""
    if any(out.status() for out in code.outs):
        _commit(code)


def _changes(project: Path, stage: Stage, found: Any) -> tuple[str, ...]:
    """Why a stage is not current; empty where it is."""
    never = not any(out.hash_info for out in found.outs)
    return ("it has not run yet",) if never else tuple(_reasons(project, stage, found.status().get(found.addressing, [])))


def _reasons(project: Path, stage: Stage, entries: list[Any]) -> Iterator[str]:
    """DVC's status of a stage as phrases: `params.yaml: stages.sft.train modified`, and of its code `pipelines/store.py`, `torch 2.13 -> 2.14`."""
    for entry in entries:
        if isinstance(entry, str):
            yield "its models modified" if entry == "changed command" else entry
            continue
        for changes in entry.values():
            for path, change in changes.items():
                if path == paths.identity(stage.kind).as_posix():
                    yield from identity.changed_since_run(project, stage) or [f"{path} {change}"]
                elif isinstance(change, dict):
                    yield from (f"{path}: {key} {how}" for key, how in change.items())
                else:
                    yield f"{path} {change}"


def _in_cache(repository: Any, stage: Any) -> bool:
    """Whether the run cache knows this command, code, params and data."""
    from dvc.dependency.base import DependencyDoesNotExistError
    from dvc.stage.cache import RunCacheNotFoundError

    if stage.changed_stage() or not stage.deps_cached():
        try:
            stage.save_deps()
        except DependencyDoesNotExistError:
            return False
        for out in stage.outs:
            out.clear()  # what dvc.lock says of them belongs to other inputs
    try:
        repository.stage_cache.restore(stage, dry=True)
    except RunCacheNotFoundError:
        return False
    return True


def _restore(repository: Any, stage: Any) -> bool:
    """Check out the outputs if the run cache has them."""
    if not _in_cache(repository, stage):
        return False
    stage.remove_outs()
    repository.stage_cache.restore(stage)
    _commit(stage)
    return True


def _commit(stage: Any) -> None:
    """What `dvc commit` does: digests of everything into dvc.lock, outputs into the cache."""
    stage.save()
    stage.commit()
    stage.dump(update_pipeline=False)


def digests(project: Path, stage: Stage) -> dict[str, str]:
    """Path -> DVC's digest of every data input of a stage as it lies there now, code and params apart.

    Raises:
        UserError: one is missing.
    """
    with _repository(project) as repository:
        found = _load(repository, stage.name)
        found.save_deps()
        others = (paths.PARAMS.as_posix(), paths.identity(stage.kind).as_posix())
        return {dep.def_path: dep.hash_info.value for dep in found.deps if dep.def_path not in others}


def output_digests(project: Path, stage: str) -> dict[str, str]:
    """Path -> DVC's digest of every output of a stage as it lies there now."""
    with _repository(project) as repository:
        found = _load(repository, stage)
        for out in found.outs:
            out.save()
        return {out.def_path: out.hash_info.value for out in found.outs}


def weights(project: Path, stage: str) -> dict[str, Path]:
    """Name -> file in DVC's cache, of the model that the stage called `stage` has made: files that nothing changes any more.

    Under `dvc repro` DVC itself fills its cache after the stage; here the model is put there first.
    """
    with _repository(project) as repository:
        out = next(out for out in _load(repository, stage).outs if out.def_path == paths.model(stage).as_posix())
        out.save()
        out.commit()
        return {"/".join(key): Path(out.cache.oid_to_path(digest.value)) for key, (_, digest) in out.get_obj().iteritems()}


def intact(project: Path, stage: str) -> bool:
    """Do the outputs of a stage lie there as dvc.lock has them?"""
    with _repository(project) as repository:
        return not any(out.workspace_status() for out in _load(repository, stage).outs)


def models_read(project: Path, stages: Graph, stage: str) -> dict[str, str]:
    """Model -> DVC's recorded digest of its folder, of every model that `stage` reads."""
    wanted = [name for name, other in stages.items() if other.model and other.feeds(stages[stage])]
    with _repository(project) as repository:
        found = {name: next(out for out in _load(repository, name).outs if out.def_path == paths.model(name).as_posix()) for name in wanted}
        return {name: out.hash_info.value for name, out in found.items() if out.hash_info.value}


def fingerprint(project: Path, stage: Stage) -> dict[str, str]:
    """Digest of everything a stage depends on: code, data, params. Taken before and after a run, it tells of edits during it."""
    code = identity.current(project, stage.kind)
    with _repository(project) as repository:
        found = _load(repository, stage.name)
        found.save_deps()
        other = {str(dep): str(dep.hash_info.value) for dep in found.deps if dep.def_path != paths.identity(stage.kind).as_posix()}
        return {**code["files"], **code["libraries"], **other}


def dependencies(project: Path, stage: str) -> dict[str, str]:
    """DVC's digest of everything a stage depends on as it lies there now."""
    with _repository(project) as repository:
        found = _load(repository, stage)
        found.save_deps()
        return _digests_of(found)


def _digests_of(found: Any) -> dict[str, str]:
    return {str(dep): json.dumps(dep.hash_info.value, sort_keys=True) for dep in found.deps}


def recorded(project: Path, stage: str) -> tuple[dict[str, str], dict[str, str]]:
    """`dependencies` and `output_digests` of a stage as dvc.lock has them, whatever lies there now."""
    with _repository(project) as repository:
        found = _load(repository, stage)
        return _digests_of(found), {out.def_path: out.hash_info.value for out in found.outs}


def prepare_code(project: Path, stage: Stage) -> None:
    """Have the identity of the code that is about to run on the disk, where DVC compares it; `dvc repro` has seen to that itself.

    Raises:
        UserError: under `dvc repro`, code was edited after DVC looked at it, so DVC would take the new code's work for the old one's.
    """
    if not under_dvc():
        identity.write(project)
    elif changed := identity.changed_since_written(project, stage.kind):
        what = f"{', '.join(changed)} changed since DVC's stage `{dvc_graph.CODE}` looked"
        raise UserError(f"{stage.name}: {what}; run `dvc repro` again, with that stage in it")


def check_unchanged(project: Path, stage: Stage, before: dict[str, str]) -> None:
    """
    Raises:
        UserError: something that `stage` depends on is not as `before`, its fingerprint, says, so nobody can say what was made from what.
    """
    after = fingerprint(project, stage)
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if changed:
        raise UserError(f"{stage.name}: {', '.join(changed)} changed while the stage ran, so its outputs are not recorded; run again")


def record(project: Path, stage: str) -> None:
    """Tell DVC that `stage` has just run."""
    with _repository(project) as repository, repository.lock:
        _commit(_load(repository, stage))


def align(project: Path, loaded: Params, stages: Graph) -> None:
    """Have DVC see what params say: the stages, and the content of the local files that they name. Under DVC itself the stages stand already.

    Raises:
        UserError: DVC runs a stage from a file that says something else than params.
    """
    if under_dvc():
        dvc_graph.refuse_another(project, loaded, stages)
    else:
        dvc_graph.write(project, loaded, stages)
    for name in ("sources", "base"):
        _link(project, project / paths.EXTERNAL / name, stages[name].settings.model_dump(mode="json"))


def _link(project: Path, folder: Path, settings: Any) -> None:
    """Make a folder below data/external mirror the local files that a section names."""
    wanted: dict[Path, Path] = {}
    for key, path in external.local(project, settings).items():
        wanted |= {folder / key / file.relative_to(path.parent): file.resolve() for file in files_below(path)}
    present = [entry for entry in folder.rglob("*") if entry.is_symlink()] if folder.exists() else []
    for link in present:
        if link not in wanted or link.readlink() != wanted[link]:
            link.unlink()
    for link, target in wanted.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(target)
    for entry in sorted((entry for entry in folder.rglob("*") if entry.is_dir()), reverse=True):
        if not any(entry.iterdir()):
            entry.rmdir()


def prune(project: Path, stages: Graph) -> list[str]:
    """Remove what stages have left that params no longer name, or name as another kind: the report reads data/models whole. DVC's cache keeps
    it. Returns the names of those that are gone.

    Only a stage with a manifest has left anything of ours; a folder that somebody put there stays.
    """
    gone = []
    for file in sorted((project / paths.MANIFESTS).glob("*.json")):
        name = file.stem
        stage = stages.get(name)
        if stage is None or parameters(read_json(file)).get("kind") != stage.kind:
            gone += [name] if stage is None else []
            stays = {*stage.makes, *stage.records} if stage else set()
            for path in {paths.model(name), paths.ROWS / name, paths.ROLLOUTS / name, paths.KEPT / name} - stays:
                shutil.rmtree(project / path, ignore_errors=True)
            for path in {paths.seen(name), paths.METRICS / f"{name}.json", paths.PLOTS / f"{name}.csv"} - stays:
                (project / path).unlink(missing_ok=True)
            file.unlink()
        elif (kept := paths.KEPT / name) not in stage.makes:
            shutil.rmtree(project / kept, ignore_errors=True)
    return gone
