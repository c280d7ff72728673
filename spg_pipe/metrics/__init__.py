"""Image and pixel metrics of anomaly maps, by named protocols (docs/metrics.md). Usable alone.

>>> import numpy as np
>>> mask = np.zeros((8, 8), dtype=np.uint8)
>>> mask[2:4, 2:4] = 1
>>> metrics = accumulate(lambda: [(mask.astype(np.float32), mask)], "sort")
>>> metrics.auroc, metrics.ap, metrics.aupro[0.3]
(1.0, 1.0, 1.0)
"""

from spg_pipe.metrics.accumulators import Accumulator, HistogramAccumulator, SortAccumulator
from spg_pipe.metrics.aupro import LIMITS
from spg_pipe.metrics.image_level import ImageMetrics, image_metrics
from spg_pipe.metrics.pixel import Counts, PixelMetrics
from spg_pipe.metrics.protocols import (
    ACCUMULATORS,
    PROTOCOLS,
    SORT_PIXELS,
    accumulate,
    chosen_accumulator,
    with_fallback,
)
from spg_pipe.metrics.regions import Regions, label_regions, vanished_regions
from spg_pipe.metrics.spg import regions_per_image, spg_metrics
from spg_pipe.metrics.table_files import read_json, write_csv, write_json
from spg_pipe.metrics.tables import (
    RowContext,
    category_metrics,
    curve_rows,
    macro_mean,
    seeds_mean,
)

__all__ = [
    "ACCUMULATORS",
    "LIMITS",
    "PROTOCOLS",
    "SORT_PIXELS",
    "Accumulator",
    "Counts",
    "HistogramAccumulator",
    "ImageMetrics",
    "PixelMetrics",
    "Regions",
    "RowContext",
    "SortAccumulator",
    "accumulate",
    "category_metrics",
    "chosen_accumulator",
    "curve_rows",
    "image_metrics",
    "label_regions",
    "macro_mean",
    "read_json",
    "regions_per_image",
    "seeds_mean",
    "spg_metrics",
    "vanished_regions",
    "with_fallback",
    "write_csv",
    "write_json",
]
