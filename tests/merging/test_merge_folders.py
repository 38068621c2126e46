"""Whole model folders through `merge`: real safetensors, real Hugging Face models, and what must stop a merge."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines import paths
from pipelines.config.evaluation import MergingSettings
from pipelines.errors import UserError
from pipelines.merging import MergeConfig, merge
from pipelines.progress import Journal
from pipelines.stages import Context
from pipelines.stages import merging as stage

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 7, "tie_word_embeddings": True, "dtype": "float32"}
SHAPES = {"embed.weight": (7, 6), "layers.0.w": (6, 6), "layers.1.w": (6, 6), "norm": (6,), "empty": (0, 3)}


def weights(seed: int, changed: float = 1.0) -> dict[str, torch.Tensor]:
    """The base for seed 0, else the base with a share of its entries moved."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    mine = torch.Generator().manual_seed(seed)
    if seed:
        base = {k: v + torch.randn(v.shape, generator=mine) * (torch.rand(v.shape, generator=mine) < changed) for k, v in base.items()}
    return base | {"positions": torch.arange(5)}


def save(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1, **config: object) -> Path:
    """A model folder in one file or in several with an index, as Hugging Face writes them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = list(tensors)
    where = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def trio(root: Path, shards: int = 1) -> MergeConfig:
    models = tuple(save(root / f"m{i}", weights(i, 0.4), shards) for i in (1, 2))
    return MergeConfig(base=save(root / "base", weights(0), shards), models=models)


def test_every_tensor_follows_the_rule(tmp_path: Path) -> None:
    config = trio(tmp_path)
    summary = merge(config.model_copy(update={"method": "linear"}), tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    assert merged.keys() == weights(0).keys()
    for name, one in weights(1, 0.4).items():
        expected = one if name == "positions" else (one + weights(2, 0.4)[name]) / 2
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=1e-6)
    moved = {i: sum(int(((weights(i, 0.4)[k] - v).abs() > 1e-5).sum()) for k, v in weights(0).items()) for i in (1, 2)}
    assert summary.parameters == 7 * 6 + 36 + 36 + 6 + 5
    assert summary.changed == pytest.approx((moved[1] / summary.parameters, moved[2] / summary.parameters))
    assert 0 < summary.alone[0] < summary.changed[0]


@pytest.mark.parametrize("method", ["linear", "ties", "ram", "ram_plus"])
def test_sharding_of_inputs_and_outputs_changes_no_bit(tmp_path: Path, method: str) -> None:
    one = trio(tmp_path / "one").model_copy(update={"method": method})
    four = trio(tmp_path / "four", shards=4).model_copy(update={"method": method, "shard_bytes": 200})
    merge(one, tmp_path / "a")
    merge(four, tmp_path / "b")
    index = json.loads((tmp_path / "b/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 4  # 168 + 0, 144, 144 + 24 and 40 bytes, by name
    whole = load_file(tmp_path / "a/model.safetensors")
    parts = {name: load_file(tmp_path / "b" / shard)[name] for name, shard in index["weight_map"].items()}
    assert parts.keys() == whole.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())


def test_ram_plus_takes_rho_over_the_whole_model(tmp_path: Path) -> None:
    base = {"a": torch.zeros(3), "b": torch.zeros(3)}
    save(tmp_path / "base", base)
    # Expert 1: unique 3 + 1, shared 1 over both tensors; rho = 1/4, capped at .3. Alone, tensor a would have rho 0 and b rho 1.
    save(tmp_path / "m1", {"a": torch.tensor([1.0, 1.0, 1.0]), "b": torch.tensor([1.0, 1.0, 0.0])})
    save(tmp_path / "m2", {"a": torch.zeros(3), "b": torch.tensor([3.0, 0.0, 0.0])})
    config = MergeConfig(base=tmp_path / "base", models=(tmp_path / "m1", tmp_path / "m2"), method="ram_plus", settings={"alpha": 0.3})
    merge(config, tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    assert merged["a"].tolist() == pytest.approx([1.025] * 3)
    assert merged["b"].tolist() == pytest.approx([2.0, 1.025, 0.0])


def test_bfloat16_is_rounded_to_nearest_even_and_said_in_the_config(tmp_path: Path) -> None:
    tie_down, tie_up = 1 + 2**-8, 1 + 3 * 2**-8  # half way between two bf16 numbers
    for name, value in (("base", 0.0), ("m1", 1.0)):
        save(tmp_path / name, {"a": torch.tensor([tie_down, tie_up]) * value})
    merge(MergeConfig(base=tmp_path / "base", models=(tmp_path / "m1",), method="linear", dtype="bfloat16"), tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")["a"]
    assert merged.dtype == torch.bfloat16 and merged.tolist() == [1.0, 1 + 2**-6]
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_a_merge_is_the_same_twice(tmp_path: Path) -> None:
    config = trio(tmp_path)
    merge(config, tmp_path / "a")
    merge(config, tmp_path / "b")
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def bad(root: Path, kind: str) -> MergeConfig:
    """A trio of which the second model does not fit."""
    config = trio(root)
    broken = weights(2)
    target = root / "m2"
    if kind == "shape":
        broken["norm"] = torch.zeros(5)
    elif kind == "missing":
        del broken["norm"]
    elif kind == "extra":
        broken["head"] = torch.zeros(2)
    elif kind == "nan":
        broken["layers.1.w"][2, 3] = float("nan")
    elif kind == "inf":
        broken["norm"][0] = float("inf")
    elif kind == "buffer":
        broken["positions"] += 1
    shutil.rmtree(target)
    save(target, broken, **({"tie_word_embeddings": False} if kind == "tied" else {}))
    if kind == "vocabulary":
        (target / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"b": 0, "a": 1}}}))
    if kind == "truncated":
        file = target / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
    if kind == "pickle":
        (target / "model.safetensors").unlink()
        torch.save(broken, target / "pytorch_model.bin")
    return config


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", r"m2: tensor 'norm' has shape \[5\], expected \[6\]"),
        ("missing", "m2: tensor 'norm' is missing"),
        ("extra", "base: tensor 'head' is missing, .*m2 has it"),
        ("nan", "m2: tensor 'layers.1.w' holds NaN or inf"),
        ("inf", "m2: tensor 'norm' holds NaN or inf"),
        ("buffer", "tensor 'positions' is torch.int64 and differs"),
        ("tied", "tie_word_embeddings is False, expected True"),
        ("vocabulary", "the vocabulary differs"),
        ("truncated", "not a whole safetensors file: tensor '.*' does not fit"),
        ("pickle", "pickled weights are not read"),
    ],
)
def test_what_does_not_fit_stops_the_merge_and_leaves_nothing(tmp_path: Path, kind: str, message: str) -> None:
    config = bad(tmp_path, kind)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept").write_text("an earlier result")
    with pytest.raises(UserError, match=message):
        merge(config, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["kept"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "m1", "m2", "out"]


def test_overflow_of_a_narrow_dtype_names_the_tensor(tmp_path: Path) -> None:
    for name in ("base", "m1"):
        save(tmp_path / name, {"big": torch.tensor([1e6])})
    with pytest.raises(UserError, match="tensor 'big' leaves the range of torch.float16"):
        merge(MergeConfig(base=tmp_path / "base", models=(tmp_path / "m1",), dtype="float16"), tmp_path / "out")


def test_misspelt_setting_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown setting 'epsilon'; did you mean 'eps'"):
        merge(MergeConfig(base=tmp_path, models=(tmp_path,), settings={"epsilon": 1}), tmp_path / "out")


def test_a_real_llama_loads_after_merging(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=True)
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(LlamaForCausalLM(sizes))
        models[-1].save_pretrained(tmp_path / f"m{seed}")
    merge(MergeConfig(base=tmp_path / "m0", models=(tmp_path / "m1", tmp_path / "m2"), method="linear"), tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, value in models[1].state_dict().items():
        torch.testing.assert_close(merged[name], (value + models[2].state_dict()[name]) / 2)


def test_the_stage_merges_the_experts_that_params_name(tmp_path: Path) -> None:
    for value, name in enumerate(("sft", "math", "code")):
        save(tmp_path / paths.model(name), {"a": torch.zeros(4).index_fill_(0, torch.tensor([value]), float(value))})
    context = Context("merging", tmp_path, 0, MergingSettings(models=("math", "code")), tmp_path, Journal(tmp_path / "journal.jsonl", "merging"))
    metrics = stage.run(context)
    assert load_file(tmp_path / paths.MERGED / "model.safetensors")["a"].tolist() == [0.0, 1.0, 2.0, 0.0]
    assert metrics == {
        "experts": 2, "tensors": 1, "parameters": 4,
        "math_changed_share": 0.25, "math_alone_share": 0.25, "code_changed_share": 0.25, "code_alone_share": 0.25,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"merging.models: there is no RL stage to merge"):
        stage.run(replace(context, settings=MergingSettings(models=())))


MEASURE = """
import sys, threading, re
from pathlib import Path
from pipelines.merging import MergeConfig, merge
def anon():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) / 2**10
def run(root):
    merge(MergeConfig(base=root / "base", models=(root / "m1", root / "m2")), root / "out")
run(Path(sys.argv[1]))
before, peak, done = anon(), [0.0], threading.Event()
def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], anon())
thread = threading.Thread(target=watch)
thread.start()
run(Path(sys.argv[2]))
done.set()
thread.join()
print(peak[0] - before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    for size, count in (("small", 2), ("large", 12)):
        for value, name in enumerate(("base", "m1", "m2")):
            save(tmp_path / size / name, {f"w{i}": torch.full((1024, 1024), float(value)) for i in range(count)})
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    grown = float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], env=environment).stdout)
    assert grown < 60, f"a merge of 3 x 48 MB in tensors of 4 MB took {grown:.0f} MB more than one of 3 x 8 MB"
