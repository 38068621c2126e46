"""The same files through mergekit 0.1.5, where it is installed: equal results where it is right, and what docs/MERGING.md says where it is not.

`python -m benchmarks.merging` makes the environment; TOUCHSTONE_MERGEKIT names another interpreter that has it.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipelines.errors import UserError
from pipelines.merging import merge, read_config

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("TOUCHSTONE_MERGEKIT", ROOT / ".touchstone/mergekit/bin/python"))
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="mergekit is not installed")

RUN = """
import json, sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for config, out, seed in json.loads(sys.argv[1]):
    try:
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(open(config))), out, MergeOptions(quiet=True, random_seed=seed, write_model_card=False))
    except Exception as error:
        print(json.dumps([out, repr(error)]))
"""


def model(folder: Path, seed: int, scale: float = 0.02) -> Path:
    """A llama of three layers; seeds above 0 are that of seed 0 with half of its entries moved."""
    hidden, wide, kv, vocab = 48, 80, 24, 64
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    for i in range(3):
        part = f"model.layers.{i}."
        shapes |= {f"{part}self_attn.{name}_proj.weight": (rows, hidden) for name, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden))}
        shapes |= {f"{part}mlp.{name}_proj.weight": (wide, hidden) for name in ("gate", "up")} | {f"{part}mlp.down_proj.weight": (hidden, wide)}
        shapes |= {f"{part}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    first, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=first) * 0.05 for name, shape in shapes.items()}
    if seed:
        moved = {k: torch.randn(v.shape, generator=own) * scale * (torch.rand(v.shape, generator=own) < 0.5) for k, v in tensors.items()}
        tensors = {name: tensor + moved[name] for name, tensor in tensors.items()}
    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": wide, "vocab_size": vocab}
    config |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def each(*weights: Any) -> list[dict[str, Any]]:
    return [{"weight": weight} for weight in weights]


CASES: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], bool]] = {
    # name: method, parameters of each model, common ones, whether there is a base
    "linear": ("linear", each(0.5, [0.1, 0.9], [{"filter": "mlp", "value": 2}, {"value": 1}]), {}, False),
    "linear with the base": ("linear", each(0.3, 0.3, 0.3), {"weight": 0.5, "normalize": False}, True),
    "task_arithmetic": ("task_arithmetic", each(0.5, [0.1, 0.9, 0.3], 1), {"lambda": 0.7}, True),
    "task_arithmetic normalised": ("task_arithmetic", each(0.5, 1, 1), {"normalize": True}, True),
    "ties": ("ties", [{"weight": 0.3, "density": 0.4}] * 3, {}, True),
    "ties by layer": ("ties", [{"weight": [0.1, 0.9], "density": [0.2, 0.6]}] * 2, {"normalize": False, "lambda": 1.5, "int8_mask": True}, True),
    "ties rescaled": ("ties", [{"weight": 1, "density": 0.3}] * 3, {"rescale": True}, True),
    "breadcrumbs": ("breadcrumbs", [{"weight": 1, "density": 0.6, "gamma": 0.05}] * 3, {}, True),
    "breadcrumbs_ties": ("breadcrumbs_ties", [{"weight": 1, "density": 0.9}] * 3, {}, True),
    "slerp": ("slerp", [{}], {"t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": [1, 0]}, {"value": 0.5}]}, True),
    "nuslerp": ("nuslerp", each(0.3, 0.5), {}, True),
    "nuslerp without base": ("nuslerp", each(0.3, 0.5), {}, False),
    "nuslerp rows": ("nuslerp", each(0.3, 0.5), {"nuslerp_flatten": False}, True),
    "nuslerp columns": ("nuslerp", each(0.3, 0.5), {"nuslerp_flatten": False, "nuslerp_row_wise": True}, True),
    "model_stock": ("model_stock", [{}] * 3, {}, True),
    "model_stock by filter": ("model_stock", [{}] * 3, {"filter_wise": True}, True),
    "ram": ("ram", [{}] * 3, {}, True),
    "ramplus_tl": ("ramplus_tl", [{}] * 3, {"r": 0.3, "alpha": 0.5}, True),
    "dare_ties at density 1": ("dare_ties", each(0.4, 0.4), {}, True),
    "della_linear at density 1": ("della_linear", each(0.4, 0.4), {}, True),
}
WRONG = ("small", "seeded", "sharded", "unknown key", "nan", "zero sum", "extra")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with <case>.yaml, and <case> as mergekit made it; errors.json says where it refused."""
    root = tmp_path_factory.mktemp("mergekit")
    for i in range(4):
        model(root / f"m{i}", i)
    model(root / "small1", 1, scale=2e-6)
    model(root / "small2", 2, scale=2e-6)
    broken = load_file(root / "m1/model.safetensors")
    for name, change in (("nan", {"model.norm.weight": torch.full((48,), torch.nan)}), ("extra", {"model.adapter.weight": torch.ones(3)})):
        model(root / name, 1)
        save_file(broken | change, root / name / "model.safetensors")

    def file(method: str, models: list[str], own: list[dict[str, Any]], common: dict[str, Any], base: str | None, **more: Any) -> dict[str, Any]:
        entries = [{"model": str(root / name), **({"parameters": given} if given else {})} for name, given in zip(models, own, strict=True)]
        content: dict[str, Any] = {"merge_method": method, "models": entries, "dtype": "float32", **more}
        return content | ({"base_model": str(root / base)} if base else {}) | ({"parameters": common} if common else {})

    files = {
        name: file(m, [f"m{i + 1}" for i in range(len(own))], own, common, "m0" if base else None) for name, (m, own, common, base) in CASES.items()
    }
    half = [{"weight": 1, "density": 0.5}] * 2
    files["small"] = file("model_stock", ["small1", "small2"], [{}] * 2, {}, "m0")
    files["seeded"] = file("dare_linear", ["m1", "m2"], half, {}, "m0")
    elsewhere = [{"weight": 1, "density": [{"filter": "embed_tokens", "value": 1}, {"value": 0.5}]}] * 2
    files["elsewhere"] = file("dare_linear", ["m1", "m2"], elsewhere, {}, "m0")
    files["unknown key"] = file("ties", ["m1", "m2"], [{"weight": 1, "densty": 0.1}] * 2, {}, "m0", parametres={"lambda": 0})
    files["nan"] = file("linear", ["m2", "nan"], each(1, 1), {}, None)
    files["zero sum"] = file("linear", ["m1", "m2"], each(1, -1), {}, None)
    files["extra"] = file("linear", ["m2", "extra"], each(1, 1), {}, None)
    for name, content in files.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    jobs = [[str(root / f"{name}.yaml"), str(root / name if name not in ("nan", "extra") else root / f"{name} merged"), 1] for name in files]
    done = subprocess.run([PYTHON, "-c", RUN, json.dumps(jobs)], capture_output=True, text=True, check=True)
    (root / "errors.json").write_text(json.dumps(dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))))
    return root


def ours(root: Path, name: str, out: Path) -> dict[str, torch.Tensor]:
    merge(read_config(yaml.safe_load((root / f"{name}.yaml").read_text()), name), out)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_the_same_file_gives_the_same_model(results: Path, tmp_path: Path, name: str) -> None:
    theirs, mine = load_file(results / name / "model.safetensors"), ours(results, name, tmp_path / "out")
    assert theirs.keys() == mine.keys()
    for tensor, value in theirs.items():
        torch.testing.assert_close(mine[tensor], value, rtol=1e-5, atol=5e-7, msg=lambda text, tensor=tensor: f"{tensor}: {text}")


def test_where_it_is_not_right(results: Path, tmp_path: Path) -> None:
    base = load_file(results / "m0/model.safetensors")
    refused = json.loads((results / "errors.json").read_text())
    assert refused == {}, "it refuses none of these"

    # Model Stock does not depend on the size of the deltas; there a floor under the product of their norms takes the cosine to 0
    theirs, mine = load_file(results / "small/model.safetensors"), ours(results, "small", tmp_path / "small")
    norm = "model.layers.0.input_layernorm.weight"
    moved = {name: float((tensors[norm] - base[norm]).double().norm()) for name, tensors in (("theirs", theirs), ("ours", mine))}
    assert moved["theirs"] < 0.01 * moved["ours"]

    # random masks come from one stream in the order of the work: a change at the embedding changes every tensor after it
    changed = {name: load_file(results / name / "model.safetensors") for name in ("seeded", "elsewhere")}
    assert not torch.equal(changed["seeded"][norm], changed["elsewhere"][norm])
    mine, other = (ours(results, name, tmp_path / name) for name in ("seeded", "elsewhere"))
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == ["model.embed_tokens.weight"]

    plain = load_file(results / "unknown key/model.safetensors")
    assert not torch.equal(plain[norm], base[norm]), "neither `densty` nor `parametres` said anything"
    assert not torch.isfinite(load_file(results / "nan merged/model.safetensors")["model.norm.weight"]).any()
    assert not torch.isfinite(load_file(results / "zero sum/model.safetensors")[norm]).any()
    assert "model.adapter.weight" not in load_file(results / "extra merged/model.safetensors")
    for name, sentence in (
        ("unknown key", "parametres"),
        ("nan", "holds NaN"),
        ("zero sum", "add up to 0"),
        ("extra", "'model.adapter.weight' is missing"),
    ):
        with pytest.raises(UserError, match=sentence):
            ours(results, name, tmp_path / name)
