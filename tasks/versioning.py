"""DVC, asked and told in process: is a stage current, can it be had from the cache, and record what it has just made.

The questions are those of `dvc repro`, in the same order: a stage whose command, code, params, data and outputs are as
dvc.lock says is current; one that the run cache knows is checked out; any other runs. Under `dvc repro` DVC does the asking
and recording itself; what a stage starts from is compared before and after all the same.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines import graph, paths
from pipelines.config import Params
from pipelines.errors import UserError
from pipelines.lineage import external
from pipelines.lineage.digests import files_below
from tasks import identity, settings

CODE = "code"
"""DVC's stage that writes what decides the results of the others."""

State = Literal["current", "restored", "stale"]


@dataclass(frozen=True)
class Answer:
    """What DVC says of one stage; `reasons` name what has changed since it was recorded."""

    stage: str
    state: State
    reasons: tuple[str, ...] = ()


def under_dvc() -> bool:
    """Was this process started by `dvc repro`?"""
    return "DVC_STAGE" in os.environ


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


def look(project: Path, stage: str) -> Answer:
    """What `settle` would say, with nothing checked out and nothing recorded."""
    with _repository(project) as repository, repository.lock:
        found = repository.stage.load_one(name=stage)
        edited = identity.changed_since_written(project, stage)
        reasons = _changes(project, found) or tuple(edited)
        return Answer(stage, "current" if not reasons else "restored" if not edited and _in_cache(repository, found) else "stale", reasons)


def settle(project: Path, stage: str, *, force: bool = False) -> Answer:
    """Is `stage` current? If not, but the cache holds what it would make, its outputs are checked out and recorded."""
    return settle_all(project, [stage], [stage] if force else [])[0]


def settle_all(project: Path, stages: Sequence[str], forced: Sequence[str] = ()) -> list[Answer]:
    """`settle` of each stage in turn, up to the first that has to run."""
    identity.write(project)
    answers: list[Answer] = []
    with _repository(project) as repository, repository.lock:
        found = {each.addressing: each for each in repository.index.stages}  # one by one, dvc.yaml is read again for each
        _record_code(found[CODE])
        for stage in stages:
            answers.append(_settle(project, repository, found[stage], stage in forced))
            if answers[-1].state == "stale":
                break
    return answers


def _settle(project: Path, repository: Any, stage: Any, force: bool) -> Answer:
    if force:
        return Answer(stage.addressing, "stale", ("forced",))
    reasons = _changes(project, stage)
    if not reasons:
        return Answer(stage.addressing, "current")
    if _restore(repository, stage):
        return Answer(stage.addressing, "restored", reasons)
    return Answer(stage.addressing, "stale", reasons)


def _record_code(code: Any) -> None:
    """Write into dvc.lock what the stage `code` has made, as `dvc repro` does."""
    if any(out.status() for out in code.outs):
        _commit(code)


def _changes(project: Path, stage: Any) -> tuple[str, ...]:
    """Why a stage is not current; empty where it is."""
    never = not any(out.hash_info for out in stage.outs)
    return ("it has not run yet",) if never else tuple(_reasons(project, stage.name, stage.status().get(stage.addressing, [])))


def _reasons(project: Path, stage: str, entries: list[Any]) -> Iterator[str]:
    """DVC's status of a stage as short phrases: `params.yaml: sft.train modified`, and of its code `pipelines/store.py`, `torch 2.13 -> 2.14`."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry
            continue
        for changes in entry.values():
            for path, change in changes.items():
                if path == paths.identity(stage).as_posix():
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


def digests(project: Path, stage: str) -> dict[str, str]:
    """Path -> DVC's digest of every data input of a stage as it lies there now, code and params apart.

    Raises:
        UserError: one is missing.
    """
    with _repository(project) as repository:
        found = repository.stage.load_one(name=stage)
        found.save_deps()
        return {dep.def_path: dep.hash_info.value for dep in found.deps if _is_data(dep, stage)}


def _is_data(dep: Any, stage: str) -> bool:
    return dep.def_path not in (paths.PARAMS.as_posix(), paths.identity(stage).as_posix())


def output_digests(project: Path, stage: str) -> dict[str, str]:
    """Path -> DVC's digest of every output of a stage as it lies there now."""
    with _repository(project) as repository:
        found = repository.stage.load_one(name=stage)
        for out in found.outs:
            out.save()
        return {out.def_path: out.hash_info.value for out in found.outs}


def weights(project: Path, stage: str) -> dict[str, Path]:
    """Name -> file in DVC's cache, of the model that `stage` has made: files that nothing changes any more.

    Under `dvc repro` DVC itself fills its cache after the stage; here the model is put there first.
    """
    with _repository(project) as repository:
        folder = paths.model(trained(stage) or "").as_posix()
        out = next(out for out in repository.stage.load_one(name=stage).outs if out.def_path == folder)
        out.save()
        out.commit()
        return {"/".join(key): Path(out.cache.oid_to_path(digest.value)) for key, (_, digest) in out.get_obj().iteritems()}


def intact(project: Path, stage: str) -> bool:
    """Do the outputs of a stage lie there as dvc.lock has them?"""
    with _repository(project) as repository:
        return not any(out.workspace_status() for out in repository.stage.load_one(name=stage).outs)


def trained(stage: str) -> str | None:
    """Name of the model that a stage makes, if it makes one."""
    name, _, item = stage.partition("@")
    return {"base": "base", "sft": "sft", "merging": "merged", "rl": item}.get(name)


def models_read(project: Path, loaded: Params, stage: str) -> dict[str, str]:
    """Model -> DVC's recorded digest of its folder, of every model that `stage` reads."""
    makers = {name: maker for maker in settings.stages(loaded) if maker != stage and (name := trained(maker))}
    models = loaded.rl.stages[stage.partition("@")[2]].models if "@" in stage else ()
    read = graph.inputs(stage, *models)
    everything = paths.MODELS in read
    experts = set(loaded.rl.stages) if paths.RL_MANIFESTS in read else set()
    with _repository(project) as repository:
        wanted = [name for name in makers if everything or name in experts or paths.model(name) in read]
        stages = {name: repository.stage.load_one(name=makers[name]) for name in wanted}
        outs = {name: next(out for out in found.outs if out.def_path == paths.model(name).as_posix()) for name, found in stages.items()}
        return {name: out.hash_info.value for name, out in outs.items() if out.hash_info.value}


def fingerprint(project: Path, stage: str) -> dict[str, str]:
    """Digest of everything a stage depends on: code, data, params. Taken before and after a run, it tells of edits during it."""
    code = identity.current(project, stage)
    with _repository(project) as repository:
        found = repository.stage.load_one(name=stage)
        found.save_deps()
        other = {str(dep): str(dep.hash_info.value) for dep in found.deps if dep.def_path != paths.identity(stage).as_posix()}
        return {**code["files"], **code["libraries"], **other}


def dependencies(project: Path, stage: str) -> dict[str, str]:
    """DVC's digest of everything a stage depends on as it lies there now."""
    with _repository(project) as repository:
        found = repository.stage.load_one(name=stage)
        found.save_deps()
        return _digests_of(found)


def _digests_of(found: Any) -> dict[str, str]:
    return {str(dep): json.dumps(dep.hash_info.value, sort_keys=True) for dep in found.deps}


def recorded(project: Path, stage: str) -> tuple[dict[str, str], dict[str, str]]:
    """`dependencies` and `output_digests` of a stage as dvc.lock has them, whatever lies there now."""
    with _repository(project) as repository:
        found = repository.stage.load_one(name=stage)
        return _digests_of(found), {out.def_path: out.hash_info.value for out in found.outs}


def prepare_code(project: Path, stage: str) -> None:
    """Have the identity of the code that is about to run on the disk, where DVC compares it; `dvc repro` has seen to that itself.

    Raises:
        UserError: under `dvc repro`, code was edited after DVC looked at it, so DVC would take the new code's work for the old one's.
    """
    if not under_dvc():
        identity.write(project)
    elif changed := identity.changed_since_written(project, stage):
        raise UserError(f"{stage}: {', '.join(changed)} changed since DVC's stage `{CODE}` looked; run `dvc repro` again, with that stage in it")


def check_unchanged(project: Path, stage: str, before: dict[str, str]) -> None:
    """
    Raises:
        UserError: something that `stage` depends on is not as `before`, its fingerprint, says, so nobody can say what was made from what.
    """
    after = fingerprint(project, stage)
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if changed:
        raise UserError(f"{stage}: {', '.join(changed)} changed while the stage ran, so its outputs are not recorded; run again")


def record(project: Path, stage: str) -> None:
    """Tell DVC that `stage` has just run."""
    with _repository(project) as repository, repository.lock:
        _commit(repository.stage.load_one(name=stage))


def link_external(project: Path, loaded: Params) -> None:
    """Make data/external mirror the local files that params name, so that DVC sees when their content changes."""
    for stage in ("sources", "base"):
        folder = project / paths.EXTERNAL / stage
        wanted: dict[Path, Path] = {}
        for key, path in external.local(project, settings.given(loaded, stage)["settings"]).items():
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


def prune(project: Path, loaded: Params) -> list[str]:
    """Remove what RL stages that params no longer names have left: data/models is an input of evaluation. DVC's cache keeps it.

    Only a stage with a manifest has left anything of ours; a folder that somebody put there stays.
    """
    gone = [file.stem for file in sorted((project / paths.RL_MANIFESTS).glob("*.json")) if file.stem not in loaded.rl.stages]
    for name in gone:
        stage = f"rl@{name}"
        slug = paths.slug(stage)
        for path in (paths.model(name), paths.ROLLOUTS / name):
            shutil.rmtree(project / path, ignore_errors=True)
        for path in (paths.METRICS / f"{slug}.json", paths.PLOTS / f"{slug}.csv", paths.manifest(stage)):
            (project / path).unlink(missing_ok=True)
    return gone
