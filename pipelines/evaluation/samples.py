"""The table of judged responses, from which every figure can be recomputed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import UserError

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("topics", pa.list_(pa.string()), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("answer_type", pa.string(), nullable=False),
        pa.field("sample", pa.int64(), nullable=False),
        pa.field("seed", pa.uint64(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("response_tokens", pa.int64(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("extracted", pa.string()),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("vote", pa.int64()),
        pa.field("confidence", pa.float64()),
        pa.field("logp", pa.float64()),
    ]
)
"""One row per response, by problem id and sample. `seed` keys the stream the response was drawn from. vote: the first sample of the
problem with an equal answer; null where there is no answer, it was not judged, or it is a program. confidence: what the response states,
null for nothing. logp: sum of its tokens' log-probabilities under the distribution sampled from, nats."""


def read_samples(path: Path) -> pa.Table:
    """A Parquet file of SAMPLE_SCHEMA; columns that may be null and are not there are null.

    Raises:
        UserError: no such file, not Parquet, or a column is missing.
    """
    try:
        names = pq.read_schema(path).names
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: no Parquet file of samples: {str(error).splitlines()[0]}") from None
    for field in SAMPLE_SCHEMA:
        if not field.nullable and field.name not in names:
            raise UserError(f"{path}: these are no samples of an evaluation: the column '{field.name}' is missing")
    return pq.read_table(path, schema=SAMPLE_SCHEMA)
