"""`touchstone models`: the table of known models. `touchstone models get NAME|FILE.gguf [DIR]`: one of them as a folder in Hugging Face format.
`touchstone models serve NAME|FILE.gguf`: one of them behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def register(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    sub = add("models", models, "the table of known models, for base.model; `get` makes the folder of one, or of a GGUF file, `serve` an endpoint")
    sub.add_argument("action", nargs="?", choices=("list", "get", "serve"), default="list")
    sub.add_argument("model", nargs="?", metavar="NAME|FILE.gguf", help="a row of the table, or a GGUF file")
    sub.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="the folder to write (the name of the model)")
    sub.add_argument("--port", type=int, default=8080, help="serve: the port, on this machine alone; 0 takes a free one (8080)")
    sub.add_argument("--slots", type=int, default=8, help="serve: requests answered at once (8)")
    sub.add_argument("--context", type=int, default=2048, help="serve: tokens of one request with its answer (2048)")
    sub.add_argument("--accept-licence", metavar="NAME", help="accept a licence that is not free, by its name")


def models(options: argparse.Namespace) -> int:
    from pipelines.errors import UserError

    if options.action == "list":
        return _table()
    if options.model is None:
        raise UserError(f"models {options.action}: name a known model (`touchstone models` lists them) or a file *.gguf")
    if options.action == "serve":
        return _serve(options)
    return _get(options.model, options.folder, options.accept_licence)


def _table() -> int:
    from pipelines.models.cache import is_cached
    from pipelines.models.known import known_models

    print(f"{'name':<28} {'licence':<11} {'kind':<7} {'parameters':>13} {'download':>10}  {'file':<8} {'here':<4} {'origin':<34} SHA-256")
    for row in known_models().values():
        size, here = f"{row.download / 1e6:,.0f} MB", "yes" if is_cached(row) else "no"
        print(
            f"{row.name:<28} {row.licence + ('*' if row.terms else ''):<11} {row.architecture:<7} {row.parameters:>13,} {size:>10}  "
            f"{row.quantisation:<8} {here:<4} {row.origin:<34} {row.sha256}"
        )
    for row in known_models().values():
        if row.terms:
            print(f"* {row.name}: accept {row.terms} with base.accept_licence: {row.accepted_as}, or --accept-licence {row.accepted_as}")
    return 0


def _get(named: str, folder: Path | None, accepted: str | None) -> int:
    from pipelines.models.bringing import bring_in
    from pipelines.models.cache import cached
    from pipelines.models.gguf.header import SUFFIX
    from pipelines.models.known import known_model
    from pipelines.outputs import OutputFolder
    from pipelines.progress import Journal

    model = Path(named) if named.endswith(SUFFIX) else known_model(named)
    name, inputs = (model.stem, [model]) if isinstance(model, Path) else (model.name, [cached(model)])
    out = OutputFolder(folder or Path(name), inputs)
    journal = Journal(Path(os.devnull), name)  # it shows, and records nothing
    with out.replacing() as temporary:
        brought = bring_in(model, temporary, accepted, show=journal.show, say=journal.say)
    print(f"{out.path}: {brought.parameters:,} parameters in bfloat16, from the GGUF file with SHA-256 {brought.sha256}")
    return 0


def _serve(options: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from pipelines.chat import TEACHER_KEY, TEACHER_URL
    from pipelines.models.fetching import fetch
    from pipelines.models.gguf.header import SUFFIX
    from pipelines.models.known import known_model
    from pipelines.models.serving import Serving, served
    from pipelines.progress import Journal

    named = options.model
    name = Path(named).stem if named.endswith(SUFFIX) else named
    journal = Journal(Path(os.devnull), name)
    file = Path(named) if named.endswith(SUFFIX) else fetch(known_model(named), options.accept_licence, journal.show)
    key = os.environ.get(TEACHER_KEY)
    with served(file, name, Serving(options.port, options.slots, options.context, key)) as url:
        asks = f"; it asks for the key in {TEACHER_KEY}" if key else ""
        print(f"{name} answers at {url} until Ctrl-C{asks}. For a stage: export {TEACHER_URL}={url}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0
