"""Rows that mean the same, once: SemDeDup (arXiv 2303.09540) with the choices of Big-Math (arXiv 2502.17387).

The text "problem answer" of every row is embedded; k-means parts the rows into clusters; within a cluster rows are taken from the
centre outwards, and one goes when its cosine with a row before it exceeds the threshold. Embeddings do not see numbers well: use a
threshold near 1, or look at what goes.
"""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa

from pipelines.config.curation import SemanticDuplicateSettings
from pipelines.curation.deduplication import in_order
from pipelines.curation.steps import Apply, Batch, Decided, Inputs, Reason, Rows, label

SEED = 1
SLICE = 4096
"""Rows whose distances to the centres are in memory at once."""


def semantic_dedup(rows: Rows, inputs: Inputs) -> Apply:
    """Drop rows that mean what a row nearer to the centre of its cluster means, as `semantic_duplicate`.

    A row takes 1.5 KB with a model of 384 dimensions; embedding takes by far the longest.

    Raises:
        UserError: the embedding model is not there.
    """
    from pipelines.models.embedding import Embedder

    settings = inputs.settings.semantic_duplicates
    assert settings is not None  # the settings were checked
    sketch = rows.sketch(functools.partial(_embedded, Embedder(settings.embedding)))
    numbers = sketch.column("row").to_numpy()
    order = in_order(numbers, rows.preferred())
    column = sketch.column("vector").combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(column), column.type.list_size)[order]
    numbers = numbers[order]
    pairs = duplicates(vectors, settings)
    named = rows.take(np.unique(numbers[[other for other, _ in pairs.values()]])) if pairs else {}
    goes: dict[int, Reason] = {
        int(numbers[one]): ("semantic_duplicate", f"cosine {cosine:.3f} with {label(named[int(numbers[other])])}")
        for one, (other, cosine) in pairs.items()
    }
    return Decided(goes)


def duplicates(vectors: np.ndarray, settings: SemanticDuplicateSettings) -> dict[int, tuple[int, float]]:
    """Row that goes -> (row before it in its cluster that is nearest, cosine). vectors: (rows, dimensions), each of length 1."""
    clusters, centres = k_means(vectors, max(1, len(vectors) // settings.cluster), settings.iterations)
    found: dict[int, tuple[int, float]] = {}
    for cluster in range(len(centres)):
        members = np.flatnonzero(clusters == cluster)
        if len(members) < 2:
            continue
        members = members[np.argsort(-(vectors[members] @ centres[cluster]), kind="stable")]
        cosines = np.tril(vectors[members] @ vectors[members].T, -1)
        nearest = np.argmax(cosines, axis=1)
        for place in np.flatnonzero(cosines[np.arange(len(members)), nearest] > settings.threshold).tolist():
            found[int(members[place])] = int(members[nearest[place]]), float(cosines[place, nearest[place]])
    return found


def k_means(vectors: np.ndarray, clusters: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Spherical k-means: (cluster of each row, centres of length 1).

    The first centres are rows drawn with a fixed seed; an empty cluster keeps its centre.
    """
    rng = np.random.Generator(np.random.PCG64(SEED))
    centres = vectors[np.sort(rng.choice(len(vectors), size=min(clusters, len(vectors)), replace=False))]
    nearest = np.zeros(len(vectors), np.int64)
    for _ in range(iterations):
        for start in range(0, len(vectors), SLICE):
            nearest[start : start + SLICE] = np.argmax(vectors[start : start + SLICE] @ centres.T, axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        moved = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return nearest, centres


def _embedded(embed: object, batch: Batch) -> pa.Table:
    texts = [f"{prompt} {answer}" for prompt, answer in zip(batch.texts("prompt"), batch.texts("answer"), strict=True)]
    vectors = embed(texts)  # type: ignore[operator]
    return pa.table({"row": batch.rows, "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])})
