"""The merge engine: headers first, then tensors from files to file in chunks, in fp32.

Why not load the models: three 7B models in fp32 are 84 GB, a chunk of each is 4 MB. The output's headers are planned from the
inputs' headers, so workers write every merged chunk to its place in the file, in any order. What does not fit together stops the
merge before anything is written, and what is not finite stops it with the tensor and the file; the output folder appears whole or not
at all.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipelines.errors import UserError
from pipelines.lineage.digests import file_sha256
from pipelines.merging.accounts import COLUMNS, account, notices
from pipelines.merging.checkpoints import INDEX, Shard, header, plan, raw
from pipelines.merging.configs import MergeConfig
from pipelines.merging.inputs import Inputs, equal, open_inputs, read_json
from pipelines.merging.manifests import MANIFEST, made, manifest
from pipelines.merging.methods import LEARNING, TRAJECTORY, Rule
from pipelines.merging.tensors import CHUNK, Group
from pipelines.merging.vocabulary import TOKENIZER
from pipelines.outputs import UNFINISHED, OutputFolder
from pipelines.store import replacing_folder, write_json

MODEL_FILES = ("generation_config.json", "*processor_config.json", "*.py")
"""Files beside weights and config that make a folder a model; taken from the base."""
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "chat_template*")
"""Those of its tokenizer; taken from the base unless a policy names another model."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_WORKERS = 8
R = TypeVar("R")


@dataclass(frozen=True)
class MergeSummary:
    """What a merge made. Per expert, in the order given: share of parameters it changed, share that it alone changed, and share of its
    update that is kept, as squared norm (None without an update). notices: what somebody should look at (accounts.py). Nothing of all that
    without a base, or of the steps of one trajectory. told: tensor -> figures that the rule found.
    """

    tensors: int
    parameters: int
    changed: tuple[float, ...]
    alone: tuple[float, ...]
    kept: tuple[float | None, ...]
    notices: tuple[str, ...]
    told: Mapping[str, Mapping[str, float]]


def merge(config: MergeConfig, out: Path, *, workers: int | None = None, owned: bool = False, empty: bool = False) -> MergeSummary:
    """Merge `config.models` into the model folder `out`, which appears whole or not at all.

    workers: tensors under way at once; by default one for each processor.
    owned: `out` is a place of the pipeline's own, replaced whatever it holds; else only an earlier merge, unchanged, is (outputs.py).
    empty: let a result pass that equals the base though an expert does not.

    Raises:
        UserError: unknown method or setting, inputs that do not fit together or are not finite, an `out` that holds something else, or a
            result in which nothing is left of the experts.
    """
    config.rule_for(1)
    for folder in config.folders:
        if folder.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{out}: the result would replace {folder}, which is merged; name another folder")
    replacing = functools.partial(replacing_folder, out) if owned else OutputFolder(out, record=made).replacing
    inputs = open_inputs(config.folders, config.tokenizer)
    with _workers(workers) as pool:
        read = {file: pool.submit(file_sha256, file) for file in _files_read(inputs)}
        job = Job(config, inputs)
        experts = config.base and config.method not in TRAJECTORY
        accounts = _each(pool, job.account, job.rules) if experts else []
        sums = sum(accounts, torch.zeros(len(config.models), COLUMNS, dtype=torch.float64))
        job.whole, told = sums[:, :2], notices(config, sums) if experts else ()
        if config.method in LEARNING:
            floating = {name: job.groups[name] for name in job.rules}
            job.learnt = LEARNING[config.method](floating, functools.partial(_each, pool), **config.settings)
        with replacing() as folder:
            shards = plan(job.sizes, config.shard_bytes)
            _write(job, pool, shards, folder)
            if config.base and not (empty or job.differs) and bool(sums[:, 2].any()):
                cause = "\n".join(told) or f"merging: the settings of method '{config.method}' leave nothing of the experts' updates"
                raise UserError(f"merging: the result equals its base {config.base} bit for bit\n{cause}")
            settled = {shard.name: pool.submit(_settle, folder / shard.name) for shard in shards}
            _complete(config, inputs, folder)
            if len(shards) > 1:
                index = {"metadata": {"total_size": sum(job.sizes.values())}, "weight_map": {name: s.name for s in shards for name in s.names}}
                (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
            digests = {file.name: settled[file.name].result() if file.name in settled else file_sha256(file) for file in _files(folder)}
            write_json(folder / MANIFEST, manifest(config, digests, {file: digest.result() for file, digest in read.items()}))
    parameters = sum(group.size for group in job.groups.values())
    shares = (sums / parameters).tolist() if experts else []
    kept = tuple(kept / whole if whole else None for _, _, whole, kept in shares)
    return MergeSummary(len(job.groups), parameters, tuple(row[0] + row[1] for row in shares), tuple(row[0] for row in shares), kept, told, job.told)


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.name != UNFINISHED]


class Job:
    """One merge under way: its tensors as groups, and their rules; whether something written differs from the base."""

    def __init__(self, config: MergeConfig, inputs: Inputs) -> None:
        self.method, self.inputs = config.method, inputs
        self.whole: torch.Tensor | None = None
        self.learnt: Mapping[str, Any] = {}
        self.told: dict[str, Mapping[str, float]] = {}
        self.differs = False
        bound = config.rule_for(inputs.layers)
        self.dtypes: dict[str, torch.dtype] = {}
        self.groups: dict[str, Group] = {}
        self.rules: dict[str, Rule] = {}
        for name, places in inputs.sources.items():
            known, floating = inputs.alias.get(name, name), places[0].dtype.is_floating_point
            self.dtypes[name] = DTYPES[config.dtype] if config.dtype and floating else places[0].dtype
            self.groups[name] = Group(known, places[0].shape, len(config.models), functools.partial(self.read, name), config.with_base, config.seed)
            if floating:
                self.rules[name] = bound(known)
        self.sizes = {name: group.size * self.dtypes[name].itemsize for name, group in self.groups.items()}

    def read(self, name: str, number: int, start: int, out: torch.Tensor) -> None:
        """Elements of one checkpoint into fp32; the base is number -1.

        Raises:
            UserError: NaN or inf among them.
        """
        place = self.inputs.sources[name][number + 1]
        values = place.read(start, start + len(out), out)
        if values is not out:
            out.copy_(values)
        if not finite(out):
            raise UserError(f"{place.file}: tensor '{name}' holds NaN or inf")

    def account(self, name: str) -> torch.Tensor:
        """What each expert brings in one tensor."""
        settings, dtype = getattr(self.rules[name], "keywords", {}), self.dtypes[name]
        whole = dtype == torch.float32 or all(place.dtype == dtype for place in self.inputs.sources[name])
        return account(replace(self.groups[name], has_base=True), self.method, settings, None if whole else dtype)

    def merged(self, name: str) -> Iterator[torch.Tensor]:
        """The merged tensor piece by piece, flat, in its stored dtype.

        Raises:
            UserError: it leaves the range of the dtype, or is of another kind than floating point and differs between the models.
        """
        group, dtype = self.groups[name], self.dtypes[name]
        if name not in self.rules:
            first, *others = self.inputs.sources[name]
            if not all(equal(first, other) for other in others):
                raise UserError(f"merging: tensor '{name}' is {first.dtype} and differs between the models; only floating point can be merged")
            yield from (first.read(start, min(start + CHUNK, group.size)) for start in range(0, group.size, CHUNK))
            return
        start = 0
        tell = functools.partial(self.told.__setitem__, name)
        for piece in self.rules[name](replace(group, whole=self.whole, learnt=self.learnt.get(name), tell=tell)):
            stored = piece.reshape(-1).to(dtype)
            if not finite(stored):
                raise UserError(f"merging: tensor '{name}' leaves the range of {dtype} once merged")
            if not self.differs:  # one entry that differs answers it, so this costs a chunk or two
                base = torch.empty(len(stored))
                self.read(name, -1, start, base)
                self.differs = not torch.equal(base.to(dtype), stored)
            start += len(stored)
            yield stored


def finite(values: torch.Tensor) -> bool:
    """No NaN and no inf: both survive into the extremes, which cost one pass and no memory."""
    return values.numel() == 0 or all(bool(extreme.isfinite()) for extreme in values.aminmax())


@contextmanager
def _workers(count: int | None) -> Iterator[ThreadPoolExecutor]:
    """Threads that compute on one processor each; what has not begun when the block fails never does."""
    count = count or min(os.cpu_count() or 1, MOST_WORKERS)
    pool = ThreadPoolExecutor(count, "merging", torch.set_num_threads, (1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _each(pool: ThreadPoolExecutor, function: Callable[[Any], R], names: Iterable[Any]) -> list[R]:
    """`function` of every name, in order; after an error what has not begun is left."""
    futures = [pool.submit(function, name) for name in names]
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _write(job: Job, pool: ThreadPoolExecutor, shards: list[Shard], folder: Path) -> None:
    """The weights: every tensor to its place in its file, largest first so that no worker is left with the largest at the end."""
    places: dict[str, tuple[Path, int]] = {}
    for shard in shards:
        begin = header(shard.names, {name: group.shape for name, group in job.groups.items()}, job.dtypes)
        (folder / shard.name).write_bytes(begin)
        offset = len(begin)
        for name in shard.names:
            places[name] = (folder / shard.name, offset)
            offset += job.sizes[name]

    def one(name: str) -> None:
        path, offset = places[name]
        with path.open("r+b", buffering=0) as file:
            file.seek(offset)
            for piece in job.merged(name):
                data = raw(piece)
                while data:
                    data = data[file.write(data) :]

    _each(pool, one, sorted(places, key=lambda name: -job.sizes[name]))


def _settle(file: Path) -> str:
    """Digest of a finished file; while it is computed the disk is at work already."""
    with file.open("rb") as handle:
        os.fdatasync(handle.fileno())
    return file_sha256(file)


def _complete(config: MergeConfig, inputs: Inputs, folder: Path) -> None:
    """Config, generation config, tokenizer and chat template, with what the merge has changed in them."""
    donor, vocabulary = inputs.donor, inputs.vocabulary
    tokenizer = vocabulary.source if vocabulary else donor
    for source, patterns in ((donor, MODEL_FILES), (tokenizer, TOKENIZER_FILES)):
        for file in sorted({file for pattern in patterns for file in source.glob(pattern) if file.is_file()}):
            shutil.copyfile(file, folder / file.name)
    changed: dict[str, Any] = {}
    if config.dtype:
        changed |= {key: config.dtype for key in ("dtype", "torch_dtype") if key in inputs.config}
    if vocabulary:
        changed["vocab_size"] = vocabulary.height
        vocabulary.write(folder)
    (folder / "config.json").write_text(json.dumps(inputs.config | changed, indent=2, sort_keys=True) + "\n")
    if config.chat_template is not None:
        (folder / "chat_template.jinja").write_text(config.chat_template)
        if (named := folder / "tokenizer_config.json").is_file() and "chat_template" in (content := read_json(named)):
            named.write_text(json.dumps({key: value for key, value in content.items() if key != "chat_template"}, indent=2) + "\n")


def _files_read(inputs: Inputs) -> list[Path]:
    """Every file that the result depends on."""
    beside = [folder / name for folder in dict.fromkeys(inputs.folders) for name in ("config.json", INDEX, TOKENIZER)]
    return [*inputs.files(), *(file for file in beside if file.is_file())]
