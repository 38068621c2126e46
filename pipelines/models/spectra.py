"""Singular values and leading directions of a matrix, the angles between such directions, and what they cost.

Matrices are tall here, (m, n) with m >= n. One whose smaller side is at most `exact` is decomposed as it is; a larger one, several times as
fast, through the eigenvectors of its Gram matrix: singular values are then wrong by at most 1e-7 of the largest, angles by 1e-3 degrees.
All in float64 on the CPU, as near-equal matrices need. Randomised subspace iteration is not used: on the flat spectra of such
matrices it does not settle. Where that is too slow for all matrices, fewer are decomposed
(evaluation/sampling.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2**22
"""Entries that are widened to float64 at once."""
PRODUCTS, FACTORS = 2e10, 8e9
"""Nominal operations per second of matrix products and of decompositions, in float64 on two cores. What is decomposed follows from them and
never from a clock, so that all machines choose the same matrices."""
LANCZOS = 64
DEPENDENT = 1e-6
"""Directions whose singular value is below this share of the largest are made orthogonal by QR, the others by their Gram matrix."""


@dataclass(frozen=True)
class Spectrum:
    """k leading left directions (m, k), all singular values (n,), falling, and k right directions (n, k)."""

    left: Tensor
    values: Tensor
    right: Tensor


def seconds(m: int, n: int, k: int, exact: int) -> float:
    """Nominal seconds to compare two matrices (m, n) by k directions."""
    if n <= exact:
        return (2 * (4 * m * n * n + 22 * n**3) + 10 * k**3) / FACTORS
    products = 3 * 2 * m * n * n + 2 * (2 * m * n * k + 3 * m * k * k) + 2 * m * k * k + 8 * m * n * k
    return products / PRODUCTS + (2 * 9 * n**3 + 4 * k**3) / FACTORS


def decompose(matrix: Tensor, k: int, exact: int) -> Spectrum:
    """The spectrum of a matrix (m, n)."""
    if matrix.shape[1] <= exact:
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        return Spectrum(u[:, :k], s, vh[:k].T)
    squares, vectors = torch.linalg.eigh(gram(matrix))
    values, right = squares.clamp(min=0.0).sqrt().flip(0), vectors.flip(1)[:, :k]
    left = torch.cat([rows.double() @ right for rows in rows_of(matrix)])
    if values[k - 1] > DEPENDENT * values[0]:
        left = left / values[:k]  # nearly orthonormal, so this gram matrix is nearly the unit matrix
        factor = torch.linalg.cholesky(left.T @ left)
        left = torch.linalg.solve_triangular(factor.T, left, upper=True, left=False)
    else:
        left = torch.linalg.qr(left).Q
    return Spectrum(left, values, right)


def rebuilt(matrix: Tensor, right: Tensor) -> Tensor:
    """The matrix (m, n) through k of its right directions (n, k), float32: with the leading ones its best approximation of rank k, whose largest
    entries are the principal ones."""
    return torch.cat([((rows.double() @ right) @ right.T).float() for rows in rows_of(matrix)])


def largest(matrix: Tensor) -> float:
    """The largest singular value of a matrix (m, n): by Lanczos' method with LANCZOS steps from a fixed start, to 1e-5 of it."""
    squares = gram(matrix)
    vector = torch.randn(len(squares), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis = torch.zeros(len(squares), 0, dtype=torch.float64)
    for _ in range(min(LANCZOS, len(squares))):
        for _ in range(2):  # once would leave what rounding brings back
            vector = vector - basis @ (basis.T @ vector)
        if not (length := float(vector.norm())):
            break
        basis = torch.cat([basis, vector / length], 1)
        vector = squares @ basis[:, -1:]
    return float(torch.linalg.eigvalsh(basis.T @ squares @ basis)[-1].clamp(min=0.0)) ** 0.5


def angles(first: Tensor, second: Tensor) -> Tensor:
    """Principal angles (k,) in degrees between the spaces of two orthonormal bases (n, k)."""
    return torch.rad2deg(torch.arccos(torch.linalg.svdvals(first.T @ second).clamp(0.0, 1.0)))


def gram(matrix: Tensor) -> Tensor:
    """matrix.T @ matrix (n, n), summed over blocks of rows."""
    total = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for rows in rows_of(matrix):
        wide = rows.double()
        total.addmm_(wide.T, wide)
    return total


def tall(tensor: Tensor) -> Tensor:
    """As a matrix (m, n) of the first dimension by the rest, or its transpose: m >= n."""
    matrix = tensor.reshape(tensor.shape[0], -1)
    return matrix.T if matrix.shape[0] < matrix.shape[1] else matrix


def rows_of(matrix: Tensor) -> Sequence[Tensor]:
    """Blocks of rows of about BLOCK entries."""
    return matrix.split(max(1, BLOCK // matrix.shape[1]))
