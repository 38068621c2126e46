"""`touchstone merge`."""

from __future__ import annotations

import argparse
import sys

from pipelines.errors import UserError


def merge(options: argparse.Namespace) -> int:
    from pipelines.config import read_yaml
    from pipelines.merging import merge as run
    from pipelines.merging import read_config

    out = options.out or options.folder
    if out is None or (options.out and options.folder):
        raise UserError("merge: give the folder to write once, as OUT or as --out OUT")
    config = read_config(read_yaml(options.config), str(options.config))
    if options.seed is not None:
        config = config.model_copy(update={"seed": options.seed})
    summary = run(config, out, workers=options.workers)
    print(f"{out}: {config.method} of {len(config.models)} models, {summary.tensors} tensors, {summary.parameters:,} parameters")
    for text in summary.notices:
        print(f"look at this: {text}", file=sys.stderr)
    return 0
