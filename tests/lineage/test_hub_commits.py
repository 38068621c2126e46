"""What a stage read of a hub is named by its commit: real stages against a hub on loopback, run as the bare command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from hub import hub
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines import graph, paths
from pipelines.config.sources import SourcesSettings
from pipelines.config.training import ArchitectureSettings, BaseSettings
from pipelines.lineage.manifests import resolved
from pipelines.models.tokenizer import train_tokenizer

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
REPOSITORY = Path(__file__).parents[2]


def start(root, stage, settings, address):
    """`python -m pipelines STAGE` where the hub is at `address`."""
    (root / "settings.json").write_text(json.dumps(graph.stage(stage, stage, settings).given(1)))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_ENDPOINT": address, "HF_HOME": str(root / "hf"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "pipelines", stage, "--settings", str(root / "settings.json"), "--root", str(root)]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def run(root, stage, settings, address):
    """The manifest of a stage that has run."""
    done = start(root, stage, settings, address)
    assert done.returncode == 0, done.stderr
    return json.loads((root / paths.manifest(stage)).read_text())


def test_a_dataset_that_is_not_pinned_is_recorded_with_the_commit_it_was_read_at(tmp_path):
    rows = "".join(json.dumps({"question": f"{i} and 1?", "answer": str(i + 1)}) + "\n" for i in range(5)).encode()
    fields = {"prompt": "question", "answer": "answer"}
    settings = SourcesSettings.model_validate({"train": {"mine": {"kind": "huggingface", "path": "org/name", "fields": fields}}, "benchmarks": {}})
    with hub(COMMIT, {"train.jsonl": rows}) as address:
        statement = run(tmp_path, "sources", settings, address)
    (entry,) = [entry for entry in resolved(statement) if "uri" in entry]
    assert entry["uri"] == f"hub:org/name@{COMMIT}"
    assert entry["digest"] == {"gitCommit": COMMIT}
    assert entry["annotations"] == {"setting": "train.mine", "revision": None}
    assert json.loads((tmp_path / paths.SOURCES / paths.LEDGER).read_text())["train"]["mine"]["problems"] == 5


def test_a_hub_that_does_not_answer_is_one_sentence(tmp_path):
    source = {"kind": "huggingface", "path": "org/name", "fields": {"prompt": "q", "answer": "a"}}
    settings = SourcesSettings.model_validate({"train": {"mine": source}, "benchmarks": {}})
    done = start(tmp_path, "sources", settings, "http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.startswith("sources: 'mine': org/name: cannot be read from the hub: ") and len(done.stderr.splitlines()) == 1


def test_a_model_that_is_not_pinned_is_recorded_with_its_commit_and_what_rounds_its_sums_too(tmp_path):
    folder = tmp_path / "made"
    tokenizer = train_tokenizer(["one two three four"] * 9, ArchitectureSettings().vocab_size)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    root = tmp_path / "project"
    root.mkdir()
    with hub(COMMIT, files) as address:
        statement = run(root, "base", BaseSettings(model="org/name"), address)
    (entry,) = [entry for entry in resolved(statement) if "uri" in entry]
    assert (entry["uri"], entry["digest"]) == (f"hub:org/name@{COMMIT}", {"gitCommit": COMMIT})
    machine = statement["predicate"]["runDetails"]["metadata"]
    assert machine == {"device": "cpu", "threads": torch.get_num_threads(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}
