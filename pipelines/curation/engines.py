"""Where the work of curation runs: in threads of this process, batch by batch, or as Ray Data jobs over Parquet shards.

Both read and write the same shards and hand functions of one batch the same tables, so what comes out is the same.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import extras

BATCH = 8192
"""Rows at once; it bounds memory and changes no result."""
SHARD = 65536
"""Rows per file: what one worker takes."""

FAST: dict[str, Any] = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}
"""How shards are written: they live for one run."""

Function = Callable[[pa.Table], pa.Table]


class Engine(Protocol):
    def map(self, files: Sequence[Path], function: Function) -> Iterator[pa.Table]:
        """What `function` makes of each batch, in any order."""
        ...

    def write(self, files: Sequence[Path], function: Function, folder: Path) -> list[Path]:
        """The same, written to Parquet files in `folder`."""
        ...


class Local:
    """Threads of this process: what takes time (the scan of the bytes, Parquet) is compiled and leaves the interpreter free."""

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers

    def map(self, files: Sequence[Path], function: Function) -> Iterator[pa.Table]:
        under_way: deque[Future[pa.Table]] = deque()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="curation") as threads:
            for file in files:
                for batch in pq.ParquetFile(file).iter_batches(BATCH):
                    under_way.append(threads.submit(function, pa.Table.from_batches([batch])))
                    if len(under_way) > self._workers:
                        yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()

    def write(self, files: Sequence[Path], function: Function, folder: Path) -> list[Path]:
        folder.mkdir()
        for file in files:
            writer = None
            for table in self.map([file], function):
                writer = writer or pq.ParquetWriter(folder / file.name, table.schema, **FAST)
                writer.write_table(table)
            if writer:
                writer.close()
        return sorted(folder.iterdir())


class Ray:
    """Tasks of Ray Data, on the cluster that RAY_ADDRESS names (which must see the project's folder), else on `workers` processes of this machine."""

    def __init__(self, workers: int) -> None:
        """
        Raises:
            UserError: the extra `ray` is not installed.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        extras.require("ray", "curation.engine 'ray'")
        import ray
        import ray.data

        if not ray.is_initialized():
            local: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if "RAY_ADDRESS" not in os.environ else {}
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **local)
        ray.data.DataContext.get_current().enable_progress_bars = False
        self._ray, self._workers = ray, workers

    def map(self, files: Sequence[Path], function: Function) -> Iterator[pa.Table]:
        if files:
            yield from self._mapped(files, function).iter_batches(batch_format="pyarrow", batch_size=None)

    def write(self, files: Sequence[Path], function: Function, folder: Path) -> list[Path]:
        folder.mkdir()
        self._mapped(files, function).write_parquet(str(folder))
        return sorted(folder.glob("*.parquet"))

    def _mapped(self, files: Sequence[Path], function: Function) -> Any:
        read = self._ray.data.read_parquet([str(file) for file in files], override_num_blocks=len(files))
        return read.map_batches(function, batch_format="pyarrow", batch_size=BATCH, concurrency=min(self._workers, len(files)))


def engine(name: str, workers: int) -> Engine:
    return Ray(workers) if name == "ray" else Local(workers)
