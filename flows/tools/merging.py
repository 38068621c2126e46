"""`touchstone merge`."""

from __future__ import annotations

import argparse


def merge(options: argparse.Namespace) -> int:
    from pipelines.config import check, read_yaml
    from pipelines.merging import MergeConfig
    from pipelines.merging import merge as run

    config = check(MergeConfig, read_yaml(options.config), str(options.config))
    summary = run(config, options.out)
    print(f"{options.out}: {config.method} of {len(config.models)} models, {summary.tensors} tensors, {summary.parameters:,} parameters")
    return 0
