"""What decides a stage's results: the closure of imports, read from source; digests of what the code says; the libraries it reaches."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from pipelines import paths
from pipelines.errors import UserError
from pipelines.lineage import code, syntax
from pipelines.lineage.code import PACKAGE, RUNNING, Code, changes
from pipelines.models.checkpoints import Checkpoints
from pipelines.stages import ENTRIES

FILES = {
    "pipelines/__init__.py": "",
    "pipelines/a/__init__.py": "from pipelines.a.inner import thing\n",
    "pipelines/a/inner.py": "thing = 1\n",
    "pipelines/a/lone.py": "import json\n",
    "pipelines/b.py": "from pipelines import c\n",
    "pipelines/c.py": "def f():\n    import pipelines.d\n",
    "pipelines/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipelines.e import E\n    import torch\n",
    "pipelines/e.py": "E = int\n",
    "pipelines/rows/__init__.py": '"""Mentions table.yaml and other.yaml."""\nfrom pathlib import Path\nT = Path("table.yaml")\n',
    "pipelines/rows/table.yaml": "x: 1\ny: [a]\n",
    "pipelines/rows/other.yaml": "x: 2\n",
    "pipelines/relative/__init__.py": "",
    "pipelines/relative/x.py": "from . import y\nfrom .z import name\n",
    "pipelines/relative/y.py": "",
    "pipelines/relative/z.py": "name = 1\n",
    "pipelines/reader.py": '"""Reads."""\nfrom pipelines.told import told\ntext = told.__doc__\n',
    "pipelines/told.py": 'import pipelines.e\ndef told():\n    """What is read."""\n',
    "pipelines/judge.py": "def judge():\n    from math_verify import parse\n    import numpy.linalg, yaml\n    return parse\n",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        put(tmp_path, name, text)
    return tmp_path


def put(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def identity(root, module):
    return Code(root).identity([module])


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
    assert Code(root).closure([module]) == [f"pipelines/{file}" for file in files]


def test_a_cycle_ends(root):
    put(root, "pipelines/e.py", "import pipelines.b\n")
    put(root, "pipelines/d.py", "import pipelines.e\n")
    assert Code(root).closure(["pipelines.b"]) == ["pipelines/b.py", "pipelines/c.py", "pipelines/d.py", "pipelines/e.py"]


PROGRAM = '''
"""A module."""
import os

LIMIT = 3  # of rows
"""What it bounds."""


def shorter(rows, limit=LIMIT):
    """The first rows."""
    if len(rows) > limit:
        rows = rows[:limit]
    return {"rows": rows, "text": 'one'}
'''
SAME = {
    "a comment": PROGRAM.replace("# of rows", "# so many rows are kept"),
    "docstrings": PROGRAM.replace("The first rows.", "What is kept.").replace('"""What it bounds."""', ""),
    "layout": PROGRAM.replace("\n\n\ndef", "\ndef").replace("(rows, limit=LIMIT)", "(\n    rows,\n    limit=LIMIT,\n)"),
    "quotes": PROGRAM.replace("'one'", '"one"'),
}
OTHER = {
    "a number": PROGRAM.replace("LIMIT = 3", "LIMIT = 4"),
    "its type": PROGRAM.replace("LIMIT = 3", "LIMIT = 3.0"),
    "a name": PROGRAM.replace("rows[:limit]", "rows[:LIMIT]"),
    "an operator": PROGRAM.replace("> limit", ">= limit"),
    "a string": PROGRAM.replace("'one'", "'two'"),
    "the order of keys": PROGRAM.replace("""{"rows": rows, "text": 'one'}""", """{"text": 'one', "rows": rows}"""),
    "indentation": PROGRAM.replace("    return", "        return"),
    "a default": PROGRAM.replace("limit=LIMIT", "limit"),
    "a keyword": PROGRAM.replace("limit=LIMIT", "*, limit=LIMIT"),
    "an import": PROGRAM.replace("import os", "import sys"),
    "an annotation": PROGRAM.replace("(rows,", "(rows: list,"),
}


@pytest.mark.parametrize(("edit", "same"), [*((edit, True) for edit in SAME), *((edit, False) for edit in OTHER)])
def test_a_digest_is_of_what_the_code_says(root, edit, same):
    put(root, "pipelines/e.py", PROGRAM)
    before = identity(root, "pipelines.e")
    edited = (SAME if same else OTHER)[edit]
    assert edited != PROGRAM
    put(root, "pipelines/e.py", edited)
    assert changes(before, identity(root, "pipelines.e")) == ([] if same else ["pipelines/e.py"])


def test_docstrings_count_where_they_are_read(root):
    before = identity(root, "pipelines.reader")
    put(root, "pipelines/told.py", FILES["pipelines/told.py"].replace("What is read.", "Something else."))
    assert changes(before, identity(root, "pipelines.reader")) == ["pipelines/told.py"]
    put(root, "pipelines/told.py", FILES["pipelines/told.py"])
    put(root, "pipelines/e.py", '"""The reader does not import this one itself."""\n' + FILES["pipelines/e.py"])
    assert changes(before, identity(root, "pipelines.reader")) == []


def test_the_wording_of_a_filter_is_in_the_ledger_and_so_in_the_code():
    """pipelines/curation/filters.py shows the docstrings of signals.py as reasons."""
    modules = ENTRIES["curation"][:2]
    recorded = Code().identity(modules)["files"]["pipelines/curation/signals.py"]
    text = (code.RUNNING / "pipelines/curation/signals.py").read_bytes()
    assert recorded == syntax.read(text).documented_sha256 != syntax.read(text).sha256


def walked(file):
    return ast.walk(ast.parse(file.read_bytes()))


def test_no_stage_reads_its_own_comments():
    """A digest without comments would miss what inspect.getsource or tokenize read."""
    running = Code()
    files = running.closure({module for entry in ENTRIES.values() for module in entry[:2]})
    sources = [syntax.read((code.RUNNING / file).read_bytes()) for file in files if file.endswith(".py")]
    assert len(sources) > 150
    read = {getattr(node, "attr", getattr(node, "id", None)) for file in files if file.endswith(".py") for node in walked(code.RUNNING / file)}
    assert "read_bytes" in read and read.isdisjoint({"getsource", "getsourcelines", "getcomments"})
    assert {module for source in sources for _, module, _ in source.imports}.isdisjoint({"tokenize", "linecache"})


def test_a_table_counts_by_what_it_says(root):
    before = identity(root, "pipelines.rows")
    put(root, "pipelines/rows/table.yaml", "# commented\nx: 1\ny:\n  - a\n")
    assert changes(before, identity(root, "pipelines.rows")) == []
    put(root, "pipelines/rows/table.yaml", "x: 1\ny: [b]\n")
    assert changes(before, identity(root, "pipelines.rows")) == ["pipelines/rows/table.yaml"]


def test_libraries_are_those_that_the_closure_reaches_with_what_decides_their_results(root):
    assert list(identity(root, "pipelines.judge")["libraries"]) == ["python", "latex2sympy2_extended", "math_verify", "mpmath", "numpy", "sympy"]
    assert list(identity(root, "pipelines.b")["libraries"]) == ["python"], "torch is imported for type checking only"


def test_every_library_of_the_stages_is_found_by_the_name_of_its_module():
    """A module whose distribution has another name must stand in DISTRIBUTIONS, or its upgrade would go unseen."""
    running = Code()
    files = [file for file in running.closure({m for entry in ENTRIES.values() for m in entry[:2]}) if file.endswith(".py")]
    sources = [syntax.read((code.RUNNING / file).read_bytes()) for file in files]
    modules = {module.partition(".")[0] for source in sources for level, module, _ in source.imports if not level}
    libraries = modules - sys.stdlib_module_names - {"pipelines"} - code.NEUTRAL
    assert {"torch", "numpy", "transformers", "math_verify", "vllm", "ray"} <= libraries
    assert {name for name in libraries if code.installed(name) is None} <= {"vllm", "ray"}


ASK = """
import json
from pipelines.lineage.code import Code
from pipelines.stages import ENTRIES
print(json.dumps({name: Code().identity(entry[:2]) for name, entry in ENTRIES.items()}))
"""


def test_an_upgrade_of_torch_changes_the_stages_that_use_it_and_no_other(tmp_path):
    """A newer distribution lies first on the path of a new process, as after an installation."""

    def identities(*paths):
        environment = {**os.environ, "PYTHONPATH": ":".join(map(str, (code.RUNNING, *paths)))}
        done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True, env=environment)
        return json.loads(done.stdout)

    before = identities()
    put(tmp_path, "torch-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n")
    after = identities(tmp_path)
    changed = {name: changes(before[name], after[name]) for name in before}
    assert {name for name, found in changed.items() if not found} == {"sources", "select", "critique", "target", "report"}
    assert changed["base"] == changed["rl"] == [f"torch {before['base']['libraries']['torch']} -> 99.0"]


def test_interrupted_training_goes_on_over_a_comment_and_names_the_file_or_library_that_changed(root, tmp_path):
    """The identity of checkpoints is the same notion as that of stages."""
    put(root, "pipelines/e.py", PROGRAM)
    folder = tmp_path / "work"
    before = {"code": identity(root, "pipelines.e")}
    Checkpoints(folder, before).prepare()
    put(folder, "step-00000004.pt", "state")
    put(root, "pipelines/e.py", SAME["a comment"])
    assert Checkpoints(folder, {"code": identity(root, "pipelines.e")}).prepare() == ""
    put(root, "pipelines/e.py", OTHER["a number"])
    with pytest.raises(UserError, match=r"at step 4 that was made otherwise: code.files.pipelines/e.py. Undo that"):
        Checkpoints(folder, {"code": identity(root, "pipelines.e")}).prepare()
    upgraded = {"code": {**before["code"], "libraries": {"python": "9.9"}}}
    with pytest.raises(UserError, match=r"code.libraries.python: 3.\d+ -> 9.9"):
        Checkpoints(folder, upgraded).prepare()


def test_code_that_does_not_parse_is_said_with_its_line(root):
    put(root, "pipelines/d.py", "x = 1\ndef f(:\n")
    with pytest.raises(UserError, match=r"pipelines/d.py: line 2: invalid syntax"):
        Code(root).identity(["pipelines.b"])


def test_the_identities_of_all_stages_take_a_moment():
    started = time.process_time()
    done = Code()
    for entry in ENTRIES.values():
        done.identity(entry[:2])
    assert time.process_time() - started < 1.5, "0.3 s of a core, with room for a slow one"


def test_what_is_remembered_is_what_is_read(tmp_path, monkeypatch):
    """A second process takes the same identity from the file without parsing; what was edited is parsed, and a torn file is no memory."""
    shutil.copytree(RUNNING / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / paths.STATE).mkdir()
    parsed = []
    real = syntax.read
    monkeypatch.setattr(syntax, "read", lambda text: (parsed.append(text), real(text))[1])
    first = Code(tmp_path).identity(["pipelines.stages.rl"])
    assert len(parsed) > 50
    parsed.clear()
    assert Code(tmp_path).identity(["pipelines.stages.rl"]) == first and not parsed
    with (tmp_path / "pipelines/seeding.py").open("a") as file:
        file.write("\nEDITED = 1\n")
    edited = Code(tmp_path).identity(["pipelines.stages.rl"])
    assert len(parsed) == 1 and changes(first, edited) == ["pipelines/seeding.py"]
    memory = tmp_path / paths.CODE_MEMORY
    for text in ("", "[1]", '{"format": "another", "sources": {}}', memory.read_text()[:-20]):
        memory.write_text(text)
        parsed.clear()
        assert Code(tmp_path).identity(["pipelines.stages.rl"]) == edited and len(parsed) > 50
