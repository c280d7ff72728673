"""Image and pixel metrics of anomaly maps, by named protocols (docs/metrics.md). Usable alone.

>>> import numpy as np
>>> mask = np.zeros((8, 8), dtype=np.uint8)
>>> mask[2:4, 2:4] = 1
>>> metrics = accumulate(lambda: [(mask.astype(np.float32), mask)], "sort")
>>> metrics.auroc, metrics.ap, metrics.aupro[0.3]
(1.0, 1.0, 1.0)
"""

from spg_pipe.metrics.accumulators import HistogramAccumulator, SortAccumulator
from spg_pipe.metrics.curves import Curve
from spg_pipe.metrics.image_level import image_metrics
from spg_pipe.metrics.pixel import PixelMetrics
from spg_pipe.metrics.protocols import accumulate, chosen_accumulator
from spg_pipe.metrics.regions import Regions, label_regions, vanished_regions
from spg_pipe.metrics.tables import (
    Cell,
    MetricsRow,
    MetricsTable,
    RowContext,
    RowCounts,
    category_metrics,
    csv_text,
    flat_rows,
    seeds_mean,
    with_mean,
)

__all__ = [
    "Cell",
    "Curve",
    "HistogramAccumulator",
    "MetricsRow",
    "MetricsTable",
    "PixelMetrics",
    "Regions",
    "RowContext",
    "RowCounts",
    "SortAccumulator",
    "accumulate",
    "category_metrics",
    "chosen_accumulator",
    "csv_text",
    "flat_rows",
    "image_metrics",
    "label_regions",
    "seeds_mean",
    "vanished_regions",
    "with_mean",
]
