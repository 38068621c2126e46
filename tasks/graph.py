"""Keep the `deps` of dvc.yaml in step with the code: `python -m tasks.graph --write` after adding or moving an import.

A stage depends on the data that `pipelines.graph` says it reads and on the files that its module imports, directly or not.
Without `--write` it says what is out of step and ends with exit code 1. All else in dvc.yaml is written by hand.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from pipelines import graph
from pipelines.lineage.code import closure
from pipelines.stages import ENTRIES
from pipelines.store import replacing
from tasks import settings


def expected_deps(project: Path, name: str) -> list[str]:
    """Data first, then code, as dvc.yaml must list them for the stage `name`; an RL stage in the words of its foreach."""
    module, settings_module, _ = ENTRIES[name]
    address = "rl@${key}" if name == "rl" else name
    data = graph.inputs(address, "${item.init}", "${item.reference}")
    return [path.as_posix() for path in (*data, *closure(project, [module, settings_module]))]


def body(document: Any, name: str) -> Any:
    """The mapping of one stage in dvc.yaml, below `do` where it is a foreach."""
    stage = document["stages"][name]
    return stage.get("do", stage)


def main() -> int:
    from ruamel.yaml import YAML  # comes with DVC

    parser = argparse.ArgumentParser(prog="python -m tasks.graph", description=__doc__)
    parser.add_argument("--write", action="store_true", help="rewrite the deps in dvc.yaml")
    write = parser.parse_args().write
    project = settings.root()
    yaml = YAML()
    yaml.width = 150
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(project / "dvc.yaml")
    differs = []
    for name in document["stages"]:
        expected = expected_deps(project, name)
        if list(body(document, name).get("deps", [])) != expected:
            differs.append(name)
            body(document, name)["deps"] = expected
    if write and differs:
        text = io.StringIO()
        yaml.dump(document, text)
        with replacing(project / "dvc.yaml") as temporary:
            temporary.write_text(text.getvalue())
    print(f"dvc.yaml: {'wrote' if write else 'out of step:'} {', '.join(differs)}" if differs else "dvc.yaml: in step with the code")
    return 1 if differs and not write else 0


if __name__ == "__main__":
    sys.exit(main())
