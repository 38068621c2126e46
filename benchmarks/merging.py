"""What a merge costs, beside mergekit: `python -m benchmarks.merging [--skip-mergekit] [--methods linear ram ties]`.

Three experts of 1 GB in bfloat16 and their base (llama shapes, a matrix of 131 MB the largest), files of mergekit's form, fp32
arithmetic and bfloat16 results on both sides. Each merge is one command in a process of its own, in turn on the same cores: `touchstone
merge` and `mergekit-yaml` of release 0.1.5, in a virtual environment that this benchmark makes. Measured: wall and processor seconds of the
whole command, imports included, and the largest anonymous memory (RssAnon of /proc, so without mapped files). Beside it, what the disk
itself needs to copy one checkpoint, with and without waiting for it. Touchstone's time includes digests of all it read and wrote, and the
wait for the disk; mergekit does neither.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
MERGEKIT = ("torch==2.13.0", "mergekit==0.1.5")
HIDDEN, WIDE, KEYS, VOCABULARY, LAYERS = 2048, 5632, 256, 32000, 9
PARAMETERS: dict[str, dict[str, Any]] = {"linear": {"weight": 1.0}, "ram": {}, "ties": {"weight": 1.0, "density": 0.2}}
NEEDS_BASE = ("ram", "ties")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merging", description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(PARAMETERS), choices=list(PARAMETERS))
    parser.add_argument("--skip-mergekit", action="store_true", help="do not install and run mergekit")
    parser.add_argument(
        "--environment", type=Path, default=ROOT / ".touchstone" / "mergekit", help="where mergekit's virtual environment is or is made"
    )
    parser.add_argument("--folder", type=Path, help="where to put 7 GB of checkpoints meanwhile; default: the usual temporary folder")
    options = parser.parse_args()
    mergekit = None if options.skip_mergekit else environment(options.environment).with_name("mergekit-yaml")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        size = prepare(folder)
        figures: dict[str, Any] = {"checkpoint_bytes": size, "disk": disk(folder), "merges": []}
        print("the disk copies one checkpoint in {cached:.1f} s, and in {synced:.1f} s with waiting for it".format(**figures["disk"]))
        print(f"{'':8}{'touchstone':>26}{'mergekit':>30}{'time':>8}{'memory':>8}")
        for method in options.methods:
            config = folder / f"{method}.yaml"
            config.write_text(yaml.safe_dump(content(folder, method)))
            row: dict[str, Any] = {"method": method}
            row["touchstone"] = measured([sys.executable, "-m", "flows.cli", "merge", str(config), str(folder / "ours")])
            line = f"{method:8}{told(row['touchstone']):>26}"
            if mergekit:
                row["mergekit"] = measured([str(mergekit), str(config), str(folder / "theirs"), "--quiet"])
                row |= {f"{key}_share": row["touchstone"][key] / row["mergekit"][key] for key in ("seconds", "anonymous_bytes")}
                row["equal_share"] = equal(folder / "ours", folder / "theirs")
                line += f"{told(row['mergekit']):>30}{row['seconds_share']:>8.2f}{row['anonymous_bytes_share']:>8.3f}"
                line += f"   {row['equal_share']:.4%} of the stored values are equal"
                shutil.rmtree(folder / "theirs")
            shutil.rmtree(folder / "ours")
            figures["merges"].append(row)
            print(line, flush=True)
    print(json.dumps(figures))


def told(row: dict[str, float]) -> str:
    return f"{row['seconds']:.1f} s ({row['processor_seconds']:.1f}) {row['anonymous_bytes'] / 1e6:,.0f} MB"


def environment(folder: Path) -> Path:
    """The interpreter of a virtual environment with mergekit, made once. Pip takes its index from its own settings."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"installing mergekit in {folder}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *MERGEKIT], check=True)
        (folder / "ready").touch()
    return python


def content(folder: Path, method: str) -> dict[str, Any]:
    """The file that both sides are given."""
    parameters = PARAMETERS[method]
    models = [{"model": str(folder / f"expert{i}"), **({"parameters": parameters} if parameters else {})} for i in range(3)]
    base = {"base_model": str(folder / "base")} if method in NEEDS_BASE else {}
    return {"merge_method": method, "models": models, **base, "dtype": "float32", "out_dtype": "bfloat16"}


def prepare(folder: Path) -> int:
    """The base, and three experts that differ from it in three tenths of their entries; returns the bytes of one."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        part = f"model.layers.{i}."
        heads = {"q": HIDDEN, "k": KEYS, "v": KEYS, "o": HIDDEN}
        shapes |= {f"{part}self_attn.{name}_proj.weight": (rows, HIDDEN) for name, rows in heads.items()}
        shapes |= {f"{part}mlp.{name}_proj.weight": (WIDE, HIDDEN) for name in ("gate", "up")} | {f"{part}mlp.down_proj.weight": (HIDDEN, WIDE)}
        shapes |= {f"{part}{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "vocab_size": VOCABULARY,
    }
    config |= {"num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False, "dtype": "bfloat16"}
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 24, generator=generator)  # a pool is enough: what a merge costs does not depend on the values
    base = {name: pooled(noise, shape, place).mul_(0.05).bfloat16() for place, (name, shape) in enumerate(shapes.items())}
    save(folder / "base", base, config)
    for i in range(3):
        change = torch.randn(1 << 24, generator=generator) * 0.01 * (torch.rand(1 << 24, generator=generator) < 0.3)
        moved = {name: pooled(change, tensor.shape, place).add_(tensor).bfloat16() for place, (name, tensor) in enumerate(base.items())}
        save(folder / f"expert{i}", moved, config)
    return (folder / "base/model.safetensors").stat().st_size


def pooled(pool: torch.Tensor, shape: tuple[int, ...], place: int) -> torch.Tensor:
    size = torch.Size(shape).numel()
    return pool.roll(7919 * place).repeat(-(-size // len(pool)))[:size].view(shape)


def save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def disk(folder: Path) -> dict[str, float]:
    """Seconds to copy one checkpoint: until the kernel has it, and until the disk has."""
    found = {}
    os.sync()
    for name in ("cached", "synced"):
        started = time.perf_counter()
        shutil.copyfile(folder / "base/model.safetensors", folder / "copy")
        if name == "synced":
            with (folder / "copy").open("rb") as file:
                os.fsync(file.fileno())
        found[name] = time.perf_counter() - started
        (folder / "copy").unlink()
    return found


def measured(command: list[str]) -> dict[str, float]:
    """Wall and processor seconds of a command, and its largest anonymous memory."""
    os.sync()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=said, stderr=said)
        most = 0
        while process.poll() is None:
            try:
                found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            except (FileNotFoundError, ProcessLookupError):
                found = None
            most = max(most, int(found[1]) * 1024 if found else 0)
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read()[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor_seconds": processor, "anonymous_bytes": float(most)}


def equal(ours: Path, theirs: Path) -> float:
    """Share of the stored values that are the same on both sides."""
    a, b = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    same = sum(int((a[name] == b[name]).sum()) for name in a)
    return same / sum(tensor.numel() for tensor in a.values())


if __name__ == "__main__":
    main()
