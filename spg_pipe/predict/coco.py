"""The regions of a run as COCO JSON, for annotation tools and metrics.

What importers ask for, and so what is written: category ids from 1 (Datumaro, of CVAT, takes 0 for
none), `iscrowd` 0 and the image's size beside every list of run lengths, `score` on every
annotation (Label Studio's converter fails without). CVAT, FiftyOne and pycocotools read run
lengths; Label Studio's converter reads polygons alone.
"""

from collections.abc import Iterable
from typing import Literal

from spg_pipe.predict.result import Line, Result

Shapes = Literal["rle", "polygons"]


def coco_of(lines: Iterable[Line], shapes: Shapes = "rle") -> dict[str, list[dict[str, object]]]:
    """COCO's instances of all images that were judged, in their order; failures are left out.

    Parameters
    ----------
    shapes : "rle" | "polygons"
        `rle` has every pixel of the listed regions; `polygons` their outer borders, simplified.

    Returns
    -------
    dict
        For JSON: images, categories (one, `anomaly`) and annotations. `score` is the region's
        peak, an image has its `score`, `decision` and `regions_left_out` beside COCO's own fields.
    """
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    results = (line for line in lines if isinstance(line, Result))
    for number, result in enumerate(results, start=1):
        images.append(
            {
                "id": number,
                "file_name": result.path,
                "height": result.height,
                "width": result.width,
                "score": result.score,
                "decision": result.decision,
                "regions_left_out": result.regions_left_out,
            }
        )
        for region in result.regions:
            polygons = [[value for point in region.polygon for value in point]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": list(region.bbox),
                    "area": region.area,
                    "iscrowd": 0,
                    "score": region.peak,
                    "segmentation": region.rle.model_dump() if shapes == "rle" else polygons,
                }
            )
    categories: list[dict[str, object]] = [{"id": 1, "name": "anomaly", "supercategory": ""}]
    return {"images": images, "categories": categories, "annotations": annotations}
