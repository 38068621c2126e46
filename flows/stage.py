"""One stage as a command, `python -m flows.stage NAME`: what data/dvc.yaml runs."""

from __future__ import annotations

import sys

from flows import command
from pipelines import graph
from pipelines.errors import UserError
from tasks import settings


def main() -> int:
    """Run the flow of a stage, once params hold: no server is started for what cannot run."""
    if len(sys.argv) != 2:
        raise UserError("usage: python -m flows.stage NAME, a stage of params.yaml")
    name = sys.argv[1]
    stages = graph.graph(settings.params(settings.root()))
    if name not in stages:
        raise UserError(f"there is no stage '{name}'; there are {', '.join(stages)}")
    command.start_servers(stages[name])
    from flows.kinds import FLOWS

    return command.with_server(lambda: FLOWS[stages[name].kind](name))


if __name__ == "__main__":
    sys.exit(command.run(main))
