"""What the weight diagnostics cost, and how far a sample is off: `python -m benchmarks.weights [--budget 15] [--whole]`.

Three models of 135 M parameters with random weights in bfloat16 (30 layers, 576 wide, 49,152 tokens, tied): a base, one in which every weight
moved a little, more in deeper layers, and one in which a tenth of the weights grew by 2 %. `touchstone diff-weights` compares both with the
base within the budget, each in a process of its own: wall and processor seconds with imports. With --whole all matrices are decomposed
too, which takes minutes, and the estimates stand beside the means over all of them. At last, by the cost model, what budgets buy of larger models.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipelines.evaluation import sampling
from pipelines.models.spectra import seconds

ROOT = Path(__file__).parents[1]
Sizes = tuple[int, int, int, int, int]
"""Layers, width, width of the MLP, of keys, tokens."""
SMALL: Sizes = (30, 576, 1536, 192, 49152)
LARGER: dict[str, Sizes] = {"0.5B": (24, 896, 4864, 128, 151936), "7B": (32, 4096, 11008, 4096, 32000)}
BUDGETS = (15.0, 60.0, 600.0, 3600.0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    parser.add_argument("--budget", type=float, default=15.0, help="nominal seconds for a pair (15)")
    parser.add_argument("--whole", action="store_true", help="decompose all matrices too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder)
        for name in ("dense", "sparse"):
            part = compared(folder, name, options.budget)
            whole = compared(folder, name, math.inf) if options.whole else None
            for figure, error in part["errors"].items():
                beside = f"   all {whole[figure]:.4g}" if whole else ""
                print(f"    {figure:10} {part[figure]:.4g} ± {error:.2g}{beside}")
    for name, sizes in LARGER.items():
        sides = {tensor: tuple(sorted(shape, reverse=True)) for tensor, shape in shapes(sizes).items() if len(shape) > 1}
        costs = {tensor: seconds(m, n, min(512, n // 2), 128) for tensor, (m, n) in sides.items()}
        bought = ", ".join(f"{budget:g} s {len(sampling.choose(costs, budget).names)}" for budget in BUDGETS)
        print(f"{name}: {len(costs)} matrices would take {sum(costs.values()):,.0f} s; {bought}")


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The tensors of a llama with a tied head."""
    layers, hidden, wide, keys, tokens = sizes
    block = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden)}
    block |= {"self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide)}
    found: dict[str, tuple[int, ...]] = {f"layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in block.items()}
    return found | {f"layers.{i}.norm.weight": (hidden,) for i in range(layers)} | {"embed_tokens.weight": (tokens, hidden)}


def make(folder: Path) -> None:
    """The three models."""
    random = torch.Generator().manual_seed(0)
    models: dict[str, dict[str, torch.Tensor]] = {"base": {}, "dense": {}, "sparse": {}}
    for name, shape in shapes(SMALL).items():
        weight = torch.randn(shape, generator=random) * 0.05
        depth = int(name.split(".")[1]) / SMALL[0] if name.startswith("layers") else 0.5
        dense = weight + torch.randn(shape, generator=random) * (2e-4 + 6e-4 * depth)
        sparse = torch.where(torch.rand(shape, generator=random) < 0.1, weight * 1.02, weight)
        for model, tensor in zip(models.values(), (weight, dense, sparse), strict=True):
            model[name] = tensor.bfloat16()
    for name, tensors in models.items():
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")


def compared(folder: Path, name: str, budget: float) -> dict[str, dict[str, float]]:
    """What `touchstone diff-weights` says of a model and the base; prints what it took."""
    out = folder / "found.json"
    command = [sys.executable, "-m", "flows.cli", "diff-weights", str(folder / "base"), str(folder / name), "--budget", str(budget)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*command, "--out", str(out)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = json.loads(out.read_text())
    print(f"{name}: budget {budget:g} s, {found['decomposed']} of {found['matrices']} matrices, {wall:.1f} s ({busy:.1f} of processors)", flush=True)
    return found


if __name__ == "__main__":
    main()
