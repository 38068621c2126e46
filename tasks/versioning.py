"""DVC, asked and told in process: is a stage current, can it be had from the cache, and record what it has just made.

The questions are those of `dvc repro`, in the same order: a stage whose command, code, params, data and outputs are as
dvc.lock says is current; one that the run cache knows is checked out; any other runs. Under `dvc repro` DVC does the asking
and recording itself, and only `digests` is used here.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines import graph, paths
from pipelines.config import Params
from pipelines.errors import UserError
from pipelines.lineage import external
from tasks import settings

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


def settle(project: Path, stage: str, *, force: bool = False) -> Answer:
    """Is `stage` current? If not, but the cache holds what it would make, its outputs are checked out and recorded."""
    with _repository(project) as repository, repository.lock:
        found = repository.stage.load_one(name=stage)
        if force:
            return Answer(stage, "stale", ("forced",))
        never = not any(out.hash_info for out in found.outs)
        reasons = ("it has not run yet",) if never else tuple(_reasons(found.status().get(found.addressing, [])))
        if not reasons:
            return Answer(stage, "current")
        if _restore(repository, found):
            return Answer(stage, "restored", reasons)
        return Answer(stage, "stale", reasons)


def _reasons(entries: list[Any]) -> Iterator[str]:
    """DVC's status of a stage as short phrases: `pipelines/store.py modified`, `params sft.train modified`."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry
            continue
        for changes in entry.values():
            for path, change in changes.items():
                if isinstance(change, dict):
                    yield from (f"{path}: {key} {how}" for key, how in change.items())
                else:
                    yield f"{path} {change}"


def _restore(repository: Any, stage: Any) -> bool:
    """Check out the outputs if the run cache knows this command, code, params and data."""
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
        return {dep.def_path: dep.hash_info.value for dep in found.deps if dep.def_path.startswith("data/")}


def output_digests(project: Path, stage: str) -> dict[str, str]:
    """Path -> DVC's digest of every output of a stage as it lies there now."""
    with _repository(project) as repository:
        found = repository.stage.load_one(name=stage)
        for out in found.outs:
            out.save()
        return {out.def_path: out.hash_info.value for out in found.outs}


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
    with _repository(project) as repository:
        found = repository.stage.load_one(name=stage)
        found.save_deps()
        return _dependencies(found)


def _dependencies(found: Any) -> dict[str, str]:
    return {str(dep): json.dumps(dep.hash_info.value, sort_keys=True) for dep in found.deps}


def recorded(project: Path, stage: str) -> tuple[dict[str, str], dict[str, str]]:
    """`fingerprint` and `output_digests` of a stage as dvc.lock has them, whatever lies there now."""
    with _repository(project) as repository:
        found = repository.stage.load_one(name=stage)
        return _dependencies(found), {out.def_path: out.hash_info.value for out in found.outs}


def record(project: Path, stage: str, before: dict[str, str]) -> None:
    """Tell DVC that `stage` has just run on what `before`, its fingerprint, says.

    Raises:
        UserError: something it depends on was edited meanwhile, so nobody can say what was made from what.
    """
    after = fingerprint(project, stage)
    changed = [name for name in after if before.get(name) != after[name]]
    if changed:
        raise UserError(f"{stage}: {', '.join(changed)} changed while the stage ran, so its outputs are not recorded; run again")
    with _repository(project) as repository, repository.lock:
        _commit(repository.stage.load_one(name=stage))


def link_external(project: Path, loaded: Params) -> None:
    """Make data/external mirror the local files that params name, so that DVC sees when their content changes."""
    for stage in ("sources", "base"):
        folder = project / paths.EXTERNAL / stage
        wanted: dict[Path, Path] = {}
        for key, path in external.local(project, settings.given(loaded, stage)["settings"]).items():
            files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
            wanted |= {folder / key / file.relative_to(path.parent): file.resolve() for file in files}
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
