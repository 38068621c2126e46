"""What a merge is told: parameters by layer and by name, mergekit's files, and the command line."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from flows.cli import main
from pipelines.errors import UserError
from pipelines.merging import MergeConfig, read_config
from pipelines.merging.configs import evaluate, layer_share

LAYERS = 5
NAMES = ["model.embed_tokens.weight", *(f"model.layers.{i}.{part}.weight" for i in range(LAYERS) for part in ("mlp", "self_attn")), "lm_head.weight"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders base, a and b, whose tensors hold nothing but 0, 1 and 3."""
    root = tmp_path_factory.mktemp("models")
    for name, value in (("base", 0.0), ("a", 1.0), ("b", 3.0)):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": LAYERS, "dtype": "float32"}))
        save_file({tensor: torch.full((2, 2), value) for tensor in NAMES}, root / name / "model.safetensors")
    return root


@pytest.mark.parametrize(
    ("value", "name", "share", "found"),
    [
        (0.5, "any", 0.0, 0.5),
        ("1e-5", "any", 0.0, 1e-5),
        ([0, 1], "any", 0.25, 0.25),
        ([0, 0.5, 1], "any", 0.75, 0.75),
        ([0, 1, 0], "any", 1.0, 0),
        ([True, False], "any", 0.9, True),
        ([0.3], "any", 0.7, 0.3),
        ({"filter": "mlp", "value": 2}, "layers.0.mlp.w", 0.0, 2),
        ({"filter": "mlp", "value": 2}, "layers.0.attn.w", 0.0, None),
        ([{"filter": "mlp", "value": [0, 1]}, {"filter": "attn", "value": 7}, {"value": 3}], "layers.0.mlp.w", 0.5, 0.5),
        ([{"filter": "mlp", "value": [0, 1]}, {"filter": "attn", "value": 7}, {"value": 3}], "layers.0.attn.w", 0.5, 7),
        ([{"filter": "mlp", "value": [0, 1]}, {"filter": "*", "value": 3}], "norm", 0.5, 3),
    ],
)
def test_a_parameter_of_one_tensor(value, name, share, found) -> None:
    assert evaluate(value, name, share, "t") == pytest.approx(found)


def test_a_gradient_runs_over_the_layers_and_starts_outside_them() -> None:
    assert [layer_share(name, LAYERS) for name in NAMES[::2]] == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0]
    assert layer_share("lm_head.weight", LAYERS) == 0.0
    assert layer_share("transformer.h.3.mlp.weight", 4) == 1.0
    assert layer_share("model.layers.0.mlp.weight", 1) == 1.0
    assert layer_share("model.vision.layers7.weight", 4) == 0.0


def file(folder: Path, method: str, **more) -> dict:
    return {
        "merge_method": method,
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / "a")}, {"model": str(folder / "b")}],
        **more,
    }


def merged(folder: Path, content: dict, out: Path) -> dict[str, float]:
    """Tensor -> the one value it holds after `touchstone merge`."""
    config = out / "merge.yaml"
    config.write_text(yaml.safe_dump(content))
    assert main(["merge", str(config), str(out / "out")]) == 0
    tensors = load_file(out / "out/model.safetensors")
    assert all(bool((tensor == tensor[0, 0]).all()) for tensor in tensors.values())
    return {name: round(float(tensor[0, 0]), 6) for name, tensor in tensors.items()}


def test_parameters_by_model_layer_and_name(folder: Path, tmp_path: Path) -> None:
    content = file(folder, "task_arithmetic", parameters={"weight": 10, "lambda": [{"filter": "lm_head", "value": 0.5}, {"value": 1}]})
    content["models"][0]["parameters"] = {"weight": [{"filter": "mlp", "value": [0, 1]}, {"filter": "self_attn", "value": 5}]}
    content["models"][1]["parameters"] = {"weight": 0.1}
    found = merged(folder, content, tmp_path)
    assert [found[f"model.layers.{i}.mlp.weight"] for i in range(LAYERS)] == [0.3, 0.55, 0.8, 1.05, 1.3]
    assert found["model.layers.2.self_attn.weight"] == 5.3
    assert found["model.embed_tokens.weight"] == 10.3, "where a model's own value is silent the common one counts"
    assert found["lm_head.weight"] == 5.15


def test_slices_that_are_whole_models(folder: Path, tmp_path: Path) -> None:
    sources = [{"model": str(folder / name), "layer_range": [0, LAYERS]} for name in ("a", "b")]
    common = {"t": [{"filter": "mlp", "value": 0.25}, {"value": 0.5}]}
    content = {"merge_method": "slerp", "base_model": str(folder / "a"), "slices": [{"sources": sources}], "parameters": common, "dtype": "bfloat16"}
    config = read_config(content, "x")
    assert (config.base, config.models, config.dtype) == (folder / "a", (folder / "b",), "bfloat16")
    found = merged(folder, content, tmp_path)
    assert (found["model.layers.1.mlp.weight"], found["lm_head.weight"]) == (1.5, 2.0), "parallel: the chord"


def test_the_base_among_the_models_counts_for_linear_alone(folder: Path) -> None:
    content = file(folder, "ties")
    content["models"].insert(0, {"model": content["base_model"], "parameters": {"weight": 4}})
    assert [path.name for path in read_config(content, "x").models] == ["a", "b"]
    config = read_config(content | {"merge_method": "linear"}, "x")
    assert [path.name for path in config.models] == ["base", "a", "b"] and config.model_parameters[0] == {"weight": 4}
    without = read_config(file(folder, "linear", parameters={"weight": 1}), "x")
    assert [path.name for path in without.models] == ["a", "b", "base"]


def test_dtypes_and_templates(folder: Path, tmp_path: Path) -> None:
    assert read_config(file(folder, "ram"), "x").dtype is None
    assert read_config(file(folder, "ram", dtype="bfloat16", out_dtype="float16"), "x").dtype == "float16"
    merged(folder, file(folder, "ram", chat_template="{{ messages }}"), tmp_path)
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"merge_method": "tise"}, "there is no 'tise'; did you mean 'ties'"),
        ({"parametres": {}}, "unknown key 'parametres'; did you mean 'parameters'"),
        ({"parameters": {"densty": 1}}, "unknown setting 'densty'; did you mean 'density'"),
        ({"parameters": {"density": "half"}}, "setting 'density': expected .*, got"),
        ({"parameters": {"density": [1, {"value": 2}]}}, "a list holds either numbers or"),
        ({"parameters": {"density": [{"filtre": "x", "value": 2}]}}, "expected {filter, value}"),
        ({"models": [{"model": "a", "parameters": {"normalize": False}}]}, "'normalize' holds for all models"),
        ({"models": None, "slices": [{"sources": []}, {"sources": []}]}, "would stack layers"),
        ({"modules": {}}, "`modules` are not taken"),
        ({"models": None}, "expected `models`"),
        ({"base_model": None}, "it needs a base model; only linear, nuslerp do without"),
        ({"merge_method": "linear"}, "linear averages the base_model too"),
        ({"chat_template": "chatml"}, "names are not taken"),
        ({"tokenizer": {"source": "union"}, "tokenizer_source": "union"}, "give one of them"),
        ({"tokenizer": {"source": "union", "tokens": {"<x>": {"source": "a"}}}}, "unknown key 'tokenizer.tokens'"),
        ({"dtype": "int8"}, "dtype: input should be 'float32', 'bfloat16' or 'float16', got 'int8'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(folder: Path, tmp_path: Path, change, sentence, capsys) -> None:
    content = {key: value for key, value in (file(folder, "ties") | change).items() if value is not None}
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=sentence):
        read_config(content, "merge.yaml").rule_for(LAYERS)(NAMES[0])
    assert main(["merge", str(tmp_path / "merge.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_slice_of_a_model_is_refused_by_its_layers(folder: Path) -> None:
    source = {"model": str(folder / "a"), "layer_range": [0, 2]}
    with pytest.raises(UserError, match=r"layer_range \[0, 2\] of .*a is not its 5 layers"):
        read_config({"merge_method": "linear", "slices": [{"sources": [source]}]}, "x")


def test_touchstone_form_and_out_given_once(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump({"base": str(folder / "base"), "models": [str(folder / "b")], "settings": {"changed_above": 0.1}}))
    command = ["merge", str(tmp_path / "merge.yaml")]
    assert main(command) == main([*command, str(tmp_path / "x"), "--out", str(tmp_path / "x")]) == 2
    assert main([*command, "--out", str(tmp_path / "x"), "--seed", "4", "--workers", "1"]) == 0
    assert "ram of 1 models, 12 tensors, 48 parameters" in capsys.readouterr().out
    assert json.loads((tmp_path / "x/merge.json").read_text())["predicate"]["buildDefinition"]["externalParameters"]["seed"] == 4
    with pytest.raises(UserError, match="needs a base model"):
        MergeConfig(models=(folder / "a",)).rule_for(1)


def test_mergekits_epsilon_stays_a_distance(folder: Path, tmp_path: Path) -> None:
    """Where its file does not say, it is 1e-5, as in mergekit; by tensor as any other parameter."""

    def read(**parameters: object) -> MergeConfig:
        models = [{"model": str(folder / name)} for name in ("a", "b")]
        content = {"merge_method": "ram", "models": models, "base_model": str(folder / "base"), "dtype": "float32"}
        return read_config(content | ({"parameters": parameters} if parameters else {}), "x")

    def settings(config: MergeConfig, name: str) -> dict[str, object]:
        return config.rule_for(5)(name).keywords

    assert settings(read(), "norm") == {"changed_above": 1e-5, "absolute": True}
    by_tensor = read(epsilon=[{"filter": "mlp", "value": 0.5}])
    assert settings(by_tensor, "layers.0.mlp.w") == {"changed_above": 0.5, "absolute": True}
    assert settings(by_tensor, "norm") == {"changed_above": 1e-5, "absolute": True}
