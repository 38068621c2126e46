"""Whole model folders through `merge`: real safetensors, real Hugging Face models, and what must stop a merge."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.cli import main
from pipelines import paths
from pipelines.config.evaluation import MergeStage
from pipelines.errors import UserError
from pipelines.merging import METHODS, MergeConfig, MergeSummary, merge
from pipelines.models.changes import changed
from pipelines.progress import Journal
from pipelines.stages import Context
from pipelines.stages import merge as stage

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
    moved = {i: sum(int(changed(v, weights(i, 0.4)[k]).sum()) for k, v in weights(0).items() if v.is_floating_point()) for i in (1, 2)}
    assert summary.parameters == 7 * 6 + 36 + 36 + 6 + 5
    assert summary.changed == pytest.approx((moved[1] / summary.parameters, moved[2] / summary.parameters))
    assert 0 < summary.alone[0] < summary.changed[0]


def test_what_counts_as_a_change_is_said_by_ram_alone(tmp_path: Path) -> None:
    config = trio(tmp_path)
    plain, della, ram = (
        merge(config.model_copy(update={"method": method, "settings": settings}), tmp_path / "out")
        for method, settings in (("linear", {}), ("della", {"epsilon": 0.4, "density": 0.5}), ("ram", {"changed_above": 0.4}))
    )
    assert plain == della and all(less < all_ for less, all_ in zip(ram.changed, plain.changed, strict=True))


SPECIAL: dict[str, dict[str, object]] = {"slerp": {"t": 0.3}, "dare_ties": {"density": 0.5}, "della": {"density": 0.5}, "ties": {"density": 0.5}}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_sharding_and_workers_change_no_bit(tmp_path: Path, method: str) -> None:
    one, four = trio(tmp_path / "one"), trio(tmp_path / "four", shards=4)
    update = {"method": method, "settings": SPECIAL.get(method, {}), "seed": 5}
    merge(one.model_copy(update=update | {"models": one.models[: 1 if method == "slerp" else 2]}), tmp_path / "a", workers=1)
    merge(four.model_copy(update=update | {"models": four.models[: 1 if method == "slerp" else 2], "shard_bytes": 200}), tmp_path / "b", workers=3)
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
    assert names == ["chat_template.jinja", "config.json", "merge.json", "model.safetensors", "tokenizer.json"]
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
    elif kind == "quantised":
        broken["norm"] = broken["norm"].to(torch.float8_e4m3fn)
    shutil.rmtree(target)
    if kind == "untied":
        for number, name in enumerate(("base", "m1", "m2")):
            shutil.rmtree(root / name, ignore_errors=True)
            table = torch.full((7, 6), float(number))
            save(root / name, {"embed_tokens.weight": table, "lm_head.weight": table.clone() + (name == "m2")})
        return config
    other = {"tied": {"tie_word_embeddings": False}, "architecture": {"architectures": ["Other"]}, "vocab_size": {"vocab_size": 8}}
    save(target, broken, **other.get(kind, {}))
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
        ("nan", "m2/model.safetensors: tensor 'layers.1.w' holds NaN or inf"),
        ("inf", "m2/model.safetensors: tensor 'norm' holds NaN or inf"),
        ("untied", "'lm_head.weight' differs from 'embed_tokens.weight' though config.json says that they are tied"),
        ("architecture", "architectures is \\['Other'\\], expected \\['LlamaForCausalLM'\\]"),
        ("vocab_size", "vocab_size is 8, expected 7"),
        ("quantised", "tensor 'norm' is F8_E4M3; weights that are quantised cannot be merged"),
        ("buffer", "tensor 'positions' is torch.int64 and differs"),
        ("tied", "tie_word_embeddings is False, expected True"),
        ("vocabulary", "the vocabulary differs"),
        ("truncated", "not a whole safetensors file: tensor '.*' does not fit"),
        ("pickle", "pickled weights are not read"),
    ],
)
def test_what_does_not_fit_stops_the_merge_and_leaves_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, kind: str, message: str
) -> None:
    merge(trio(tmp_path_factory.mktemp("earlier")), tmp_path / "out")
    earlier = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    config = bad(tmp_path, kind)
    with pytest.raises(UserError, match=message):
        merge(config, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == earlier
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "m1", "m2", "out"]


@pytest.mark.parametrize("out", ["m1", "."])
def test_the_result_never_takes_the_place_of_an_input(tmp_path: Path, out: str) -> None:
    config = trio(tmp_path)
    with pytest.raises(UserError, match="the result would replace .*, which is merged"):
        merge(config, tmp_path / out)
    assert (tmp_path / "m1/model.safetensors").exists()


def test_overflow_of_a_narrow_dtype_names_the_tensor(tmp_path: Path) -> None:
    for name in ("base", "m1"):
        save(tmp_path / name, {"big": torch.tensor([1e6])})
    with pytest.raises(UserError, match="tensor 'big' leaves the range of torch.float16"):
        merge(MergeConfig(base=tmp_path / "base", models=(tmp_path / "m1",), dtype="float16"), tmp_path / "out")


def test_misspelt_setting_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown setting 'changed_abov'; did you mean 'changed_above'"):
        merge(MergeConfig(base=tmp_path, models=(tmp_path,), settings={"changed_abov": 1}), tmp_path / "out")


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
    context = Context("merged", tmp_path, 0, MergeStage(init="sft", models=("math", "code")), tmp_path, Journal(tmp_path / "journal.jsonl", "merged"))
    metrics = stage.run(context)
    assert load_file(tmp_path / paths.model("merged") / "model.safetensors")["a"].tolist() == [0.0, 1.0, 2.0, 0.0]
    assert metrics == {
        "experts": 2, "tensors": 1, "parameters": 4,
        "math_changed_share": 0.25, "math_alone_share": 0.25, "math_kept_share": 1.0,
        "code_changed_share": 0.25, "code_alone_share": 0.25, "code_kept_share": 1.0,
    }  # fmt: skip
    assert context.notices == []


def test_an_expert_that_the_merge_takes_little_from_is_pointed_at(tmp_path: Path) -> None:
    for name, moved in (("sft", 0.0), ("math", 1e-4), ("code", 0.5)):
        save(tmp_path / paths.model(name), {"a": torch.ones(4) + moved})
    settings = MergeStage(init="sft", models=("math", "code"), method="ram")
    context = Context("merged", tmp_path, 0, settings, tmp_path, Journal(tmp_path / "journal.jsonl", "merged"))
    metrics = stage.run(context)
    assert (metrics["math_changed_share"], metrics["math_kept_share"], metrics["code_kept_share"]) == (0.0, 0.0, 1.0)
    (notice,) = context.notices
    assert notice.startswith("merging: the merge keeps 0.00% of the update of expert 'math'") and "`changed_above`" in notice
    linear = replace(context, settings=settings.model_copy(update={"method": "linear"}), notices=[])
    assert stage.run(linear)["math_kept_share"] == 1.0 and linear.notices == [], "other methods have no such threshold"


def moved(root: Path, *steps: float, **settings: object) -> MergeSummary:
    """The merge of models whose weights are all `step` larger than the base's ones."""
    for name, step in zip(("base", "m1", "m2"), (0.0, *steps), strict=False):
        shutil.rmtree(root / name, ignore_errors=True)
        save(root / name, {"a": torch.ones(4) + step})
    given = {"base": root / "base", "models": tuple(root / f"m{i}" for i in range(1, len(steps) + 1)), "method": "linear"} | settings
    return merge(MergeConfig.model_validate(given), root / "out")


def test_what_the_stored_dtype_cannot_show_is_lost_and_said(tmp_path: Path) -> None:
    """A step of bfloat16 at 1 is 1/128."""
    half_lost = moved(tmp_path, 1e-3, 0.5, dtype="bfloat16")
    assert half_lost.kept == (0.0, 1.0)
    (notice,) = half_lost.notices
    assert "keeps 0.00% of the update of expert 'm1'" in notice and "bfloat16 stores the same as for the base" in notice
    assert moved(tmp_path, 1e-3, 0.5).notices == ()
    with pytest.raises(UserError, match=r"the result equals its base .*base bit for bit(.|\n)*expert 'm1'(.|\n)*expert 'm2'"):
        moved(tmp_path, 1e-3, 2e-3, dtype="bfloat16")


def test_a_merge_that_holds_nothing_of_its_experts_is_refused(tmp_path: Path) -> None:
    earlier = moved(tmp_path, 0.1, 0.2, method="task_arithmetic")
    kept = (tmp_path / "out/model.safetensors").read_bytes()
    assert earlier.notices == ()
    with pytest.raises(UserError, match="equals its base .* bit for bit\n.*expert 'm1'.*`changed_above` takes the rest for unchanged"):
        moved(tmp_path, 1e-5, 1e-4, method="ram")
    with pytest.raises(UserError, match="the settings of method 'task_arithmetic' leave nothing"):
        moved(tmp_path, 0.1, 0.2, method="task_arithmetic", settings={"lambda": 0.0})
    assert (tmp_path / "out/model.safetensors").read_bytes() == kept, "the earlier result stays"


def test_experts_that_equal_the_base_merge_into_it_and_are_named(tmp_path: Path) -> None:
    one = moved(tmp_path, 0.0, 0.1, method="ram")
    assert one.kept == (None, 1.0) and one.notices == ("merging: expert 'm1' equals the base bit for bit: it has learnt nothing",)
    none = moved(tmp_path, 0.0, 0.0, method="ram")
    assert len(none.notices) == 2 and load_file(tmp_path / "out/model.safetensors")["a"].tolist() == [1.0] * 4


def test_the_command_says_what_a_merge_loses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved(tmp_path, 0.0, 0.1)
    file = tmp_path / "merge.yaml"
    file.write_text(json.dumps({"base": str(tmp_path / "base"), "models": [str(tmp_path / "m1"), str(tmp_path / "m2")]}))
    assert main(["merge", str(file), str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{tmp_path / 'out'}: ram of 2 models") and "look at this: merging: expert 'm1' equals the base" in said.err


def test_a_tied_head_stored_twice_stays_tied(tmp_path: Path) -> None:
    """Random methods are keyed by name, and a head under a name of its own would come out another than its embedding."""
    for seed, name in enumerate(("base", "m1")):
        table = torch.randn(7, 6, generator=torch.Generator().manual_seed(seed))
        save(tmp_path / name, {"embed_tokens.weight": table, "lm_head.weight": table.clone()})
    settings = {"density": [0.5]}
    merge(MergeConfig(base=tmp_path / "base", models=(tmp_path / "m1",), method="dare_linear", settings=settings), tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(merged["embed_tokens.weight"], merged["lm_head.weight"])


def test_dtype_null_keeps_that_of_the_base(tmp_path: Path) -> None:
    for name in ("base", "m1"):
        save(tmp_path / name, {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(3)}, dtype="bfloat16")
    merge(MergeConfig(base=tmp_path / "base", models=(tmp_path / "m1",), dtype=None), tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    assert (merged["a"].dtype, merged["b"].dtype) == (torch.bfloat16, torch.float32)


def test_the_manifest_names_every_byte_read_and_written(tmp_path: Path) -> None:
    config = trio(tmp_path, shards=2).model_copy(update={"method": "dare_ties", "settings": {"density": 0.5}, "seed": 3, "shard_bytes": 200})
    merge(config, tmp_path / "out")
    statement = json.loads((tmp_path / "out/merge.json").read_text())
    made = {entry["name"]: entry["digest"]["sha256"] for entry in statement["subject"]}
    assert made == {file.name: sha256(file) for file in (tmp_path / "out").iterdir() if file.name != "merge.json"}
    build = statement["predicate"]["buildDefinition"]
    read = {entry["name"]: entry["digest"]["sha256"] for entry in build["resolvedDependencies"]}
    beside = ("config.json", "tokenizer.json", "model.safetensors.index.json")
    files = [file for name in ("base", "m1", "m2") for file in (tmp_path / name).iterdir() if file.suffix == ".safetensors" or file.name in beside]
    assert read == {f"{file.parent.name}/{file.name}": sha256(file) for file in files}
    told = build["externalParameters"]
    assert (told["method"], told["settings"], told["seed"], told["base"], told["models"]) == ("dare_ties", {"density": 0.5}, 3, "base", ["m1", "m2"])
    assert len(build["internalParameters"]["code"]["sha256"]) == 64
    assert str(tmp_path) not in json.dumps(statement), "the same merge elsewhere leaves the same bytes"


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


ROOT = Path(__file__).parents[2]
RUN = """
import sys
import time
from pathlib import Path
from pipelines.merging import MergeConfig, merge
root = Path(sys.argv[1])
settings = {"ties": {"density": 0.3}, "slerp": {"t": 0.5}, "dare_ties": {"density": 0.5}}
for method in sys.argv[2:]:
    models = tuple(root / name for name in ("m1", "m2"))[: 1 if method == "slerp" else 2]
    merge(MergeConfig(base=root / "base", models=models, method=method, settings=settings.get(method, {}), dtype="bfloat16"), root / "out")
"""


def started(root: Path, *methods: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", RUN, str(root), *methods], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints with a matrix of 40 MB in bfloat16."""
    root = tmp_path_factory.mktemp("large")
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "m1", "m2"):
        some = torch.randn(1 << 16, generator=generator).bfloat16()
        save(root / name, {"w": some.repeat(320).view(-1, 4096), "norm": some.clone()})
    return root


def test_memory_stays_below_four_tensors_and_400_mb(large: Path) -> None:
    """Of the whole process, the library included; what is asked for grows with the tensor, what is used does not."""
    process = started(large, "linear", "ties", "ram", "model_stock", "widen")
    most = 0.0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if found := re.search(r"RssAnon:\s+(\d+) kB", status):
            most = max(most, int(found[1]) / 1024)
        time.sleep(0.005)
    assert process.returncode == 0
    assert most < 4 * 40 + 400
    assert most < 300, f"chunks of a few megabytes beside the library's own 160 MB, not {most:.0f}"


def test_killed_in_the_middle_it_leaves_nothing_half(large: Path) -> None:
    out = large / "killed"
    for name in ("base", "m1", "m2"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).symlink_to(large / name)
    process = started(out, "dare_ties")
    part = out / ".out.part"
    while not (part / "model.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert part.exists() and not (out / "out").exists()
    assert started(out, "linear").wait() == 0
    assert not part.exists() and (out / "out/merge.json").exists()
