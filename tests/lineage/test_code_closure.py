"""Which files a stage's code is: the closure of imports, read from source."""

from pathlib import Path

import pytest

from pipelines.lineage.code import closure

FILES = {
    "pipelines/__init__.py": "",
    "pipelines/a/__init__.py": "from pipelines.a.inner import thing\n",
    "pipelines/a/inner.py": "thing = 1\n",
    "pipelines/a/lone.py": "import json\n",
    "pipelines/b.py": "from pipelines import c\n",
    "pipelines/c.py": "def f():\n    import pipelines.d\n",
    "pipelines/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipelines.e import E\n",
    "pipelines/e.py": "E = int\n",
    "pipelines/rows/__init__.py": '"""Mentions table.yaml and other.yaml."""\nfrom pathlib import Path\nT = Path("table.yaml")\n',
    "pipelines/rows/table.yaml": "x: 1\n",
    "pipelines/rows/other.yaml": "x: 2\n",
    "pipelines/relative/__init__.py": "",
    "pipelines/relative/x.py": "from . import y\nfrom .z import name\n",
    "pipelines/relative/y.py": "",
    "pipelines/relative/z.py": "name = 1\n",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "files"),
    [
        ("pipelines.a.lone", ["a/lone.py"]),
        ("pipelines.a", ["a/__init__.py", "a/inner.py"]),
        ("pipelines.b", ["b.py", "c.py", "d.py"]),
        ("pipelines.rows", ["rows/__init__.py", "rows/table.yaml"]),
        ("pipelines.relative.x", ["relative/x.py", "relative/y.py", "relative/z.py"]),
        ("json", []),
    ],
)
def test_closure(root, module, files):
    """Inside functions counts, type checking does not; a package's __init__ only when a name comes from it; data files by name."""
    assert closure(root, [module]) == [Path("pipelines") / file for file in files]


def test_a_cycle_ends(root):
    (root / "pipelines/e.py").write_text("import pipelines.b\n")
    (root / "pipelines/d.py").write_text("import pipelines.e\n")
    assert [file.name for file in closure(root, ["pipelines.b"])] == ["b.py", "c.py", "d.py", "e.py"]
