"""The table of the recipes real-*, read from their artefacts.

    python -m benchmarks.real_table artifacts [more artifacts folders]

A row a direction: mean ± sample deviation over the seeds that are there.
"""

import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_aupro_0.3")
HEAD = (
    "| backbone | auxiliary → target | seeds | images aux / target | SAE tokens a layer "
    "| SAE epochs | guide epochs | protocols "
    "| image AUROC | image AP | pixel AUROC | pixel AP | AUPRO@0.3 |"
)


def row(runs: list[dict[str, Any]]) -> str:
    """One direction's line in Markdown."""
    context, mean, provenance = (runs[0][key] for key in ("context", "mean", "provenance"))
    seeds = sorted(run["provenance"]["seed"] for run in runs)
    epochs = {round(n, 1) for run in runs for n in run["sae_epochs"]}
    tokens = {n for run in runs for n in run["provenance"]["sae_tokens_seen"].values()}
    cells = [
        context["backbone"],
        f"{context['auxiliary']} → {context['dataset']}",
        ", ".join(map(str, seeds)),
        f"{provenance['auxiliary']['images']} / {mean['counts']['images']}",
        " to ".join(f"{n:,}" for n in sorted({min(tokens), max(tokens)})),
        " to ".join(f"{n:.1f}" for n in sorted({min(epochs), max(epochs)})),
        str(provenance["guides"].get("epochs", "–")),
        f"{context['method_protocol']} / {context['protocol']}",
    ]
    for name in METRICS:
        values = [run["mean"]["metrics"][name] for run in runs]
        if None in values:  # a target without normal images has no image AUROC
            cells.append("–")
            continue
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{spread}")
    return "| " + " | ".join(cells) + " |"


def sae_epochs(folder: Path, metrics: Path, context: dict[str, Any]) -> list[float]:
    """Epochs of each layer's SAE, from the quality.json that lies where the recipe puts it."""
    run = metrics.stem.removeprefix(f"{context['auxiliary']}--{context['dataset']}-")
    place = folder / "sae" / metrics.parent.name / f"{context['auxiliary']}-{run}" / "quality.json"
    return [layer["epochs"] for layer in json.loads(place.read_text())["layers"].values()]


def main() -> None:
    """Print the table of every metrics file below the given folders."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for folder in sys.argv[1:] or ["artifacts"]:
        # A name that goes on after the seed is of a sweep or of other options than the recipe's.
        for path in sorted(Path(folder).glob("metrics/real-*/*.json")):
            if not re.search(r"-s\d+$", path.stem):
                continue
            run = json.loads(path.read_text())
            context = run["context"]
            run["sae_epochs"] = sae_epochs(Path(folder), path, context)
            recipe = path.parent.name
            groups[recipe, context["backbone"], context["auxiliary"], context["dataset"]].append(
                run
            )
    print(HEAD)
    print("|" + "---|" * HEAD.count(" | ") + "---|")
    for key in sorted(groups):
        print(row(groups[key]))


if __name__ == "__main__":
    main()
