"""Methods × targets in one table: what each saw, how it did, how sure that is, what it cost."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spg_pipe.console import choose_device
from spg_pipe.errors import SpgError
from spg_pipe.find import find_dataset, find_store
from spg_pipe.find_runs import find_detector, find_sae
from spg_pipe.params import GuideParams, parse_params
from spg_pipe.pipeline.choices import NORMALS
from spg_pipe.pipeline.features import extract
from spg_pipe.pipeline.sweeps import is_there
from spg_pipe.pipeline.training import train_guides_together, train_saes
from spg_pipe.report.tables import Table
from spg_pipe.report.text import plain
from spg_pipe.session import Session

if TYPE_CHECKING:
    from spg_pipe.baselines.patchwise import Method
    from spg_pipe.detector import Detector
    from spg_pipe.scoring import Scores
    from spg_pipe.store.reader import FeatureStore

METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_aupro_0.3")
Make = Callable[[Path], "Scores"]
"""Judges the target and writes scores to a path."""


class Entry(NamedTuple):
    """A method on one target with one seed."""

    method: str
    sees: str
    seed: int | None
    make: Make


class Comparison(NamedTuple):
    """What was found."""

    rows: list[dict[str, Any]]
    """A row a method and direction: mean and deviation over seeds, interval, seconds."""
    table: str
    path: Path


def compare(session: Session, *, normals: int = NORMALS) -> Comparison:
    """Every method on every direction of the recipe, from finished stores.

    SAEs and guides that are missing are made. Few-shot methods take images of the target's train
    split, and are left out, with a note, where there is none.

    Returns
    -------
    Comparison
        Its rows are also written to compare/<name>.csv.
    """
    from spg_pipe.metrics import write_csv

    params = session.params
    _check(session)
    published = _published(session)
    for aux in dict.fromkeys(way.aux for way in params.directions):
        _train(session, published, aux)
    rows, free = [], {}
    for way in params.directions:
        if way.aux not in free:
            free[way.aux] = _free(published, find_store(session, find_dataset(params, way.aux)))
        target = find_store(session, find_dataset(params, way.target))
        entries = list(
            _entries(session, published, way.aux, way.target, target, normals, free[way.aux])
        )
        for method in dict.fromkeys(entry.method for entry in entries):
            of_method = [entry for entry in entries if entry.method == method]
            rows.append(_row(session, way.aux, target, of_method))
            session.console.say(f"{way.aux} → {way.target}: {method} done")
    path = session.paths.comparison
    write_csv(path, rows)
    table = "\n\n".join(plain(_table(rows, way.aux, way.target)) for way in params.directions)
    session.console.say(f"Comparison {params.name} → {path}")
    return Comparison(rows, table, path)


def _check(session: Session) -> None:
    params = session.params
    if not params.directions:
        raise SpgError("The recipe has no directions, so there is nothing to compare.")
    if params.guides.kind != "contrast" or params.score.rule != "additive":
        raise SpgError(
            "compare sets spg-plus, guides.kind: contrast with score.rule: additive, beside the "
            f"published method; found {params.guides.kind} and {params.score.rule}. Use a recipe "
            "with the default method, or `spg-pipe sweep` for other settings."
        )
    if params.metrics.resolution != "model":
        raise SpgError(
            f"compare judges maps at the model's size; found metrics.resolution: "
            f"{params.metrics.resolution}. Add --set metrics.resolution=model."
        )


def _published(session: Session) -> Session:
    """The recipe with the published method; its seeds share the order of images, and so a pass."""
    content = session.params.model_dump(mode="json")
    order = {"order_seed": session.params.seeds[0]}
    content["guides"] = GuideParams(kind="trained", **order).model_dump(mode="json")
    content["score"] |= {"rule": "published", "image_score": "max"}
    params = parse_params(content, "compare")
    return replace(session, params=params, changed=session.changed | {"guides", "score"})


def _train(session: Session, published: Session, aux: str) -> None:
    store = find_store(session, find_dataset(session.params, aux))
    for seed in session.params.seeds:
        if not is_there(partial(find_sae, session, store, aux, seed)):
            train_saes([session], aux, [seed])
    for one in (session, published):
        missing = [s for s in one.params.seeds if not is_there(partial(find_detector, one, aux, s))]
        if missing:
            train_guides_together([one], aux, missing)


def _entries(
    session: Session,
    published: Session,
    aux: str,
    name: str,
    target: "FeatureStore",
    normals: int,
    free: "Sequence[Detector]",
) -> Iterator[Entry]:
    """Every method with every seed that it depends on."""
    from spg_pipe.baselines.linear import logistic_regression
    from spg_pipe.baselines.mutual import mutual_scoring, transductive
    from spg_pipe.baselines.patchwise import score_patchwise
    from spg_pipe.baselines.unsupervised import dissimilarity
    from spg_pipe.detector import Detector
    from spg_pipe.scoring import score_store

    device, sigma = choose_device(session.device), session.params.score.sigma
    labelled = "labelled auxiliary set"
    store = find_store(session, find_dataset(session.params, aux))

    def scored(detector: "Detector", like: Session) -> Make:
        score = like.params.score
        return lambda path: score_store(detector, target, path, score=score, device=device)

    def patchwise(make: "Callable[[], Method]") -> Make:
        return lambda path: score_patchwise(make(), target, path, sigma=sigma, device=device)

    own = {seed: Detector.load(find_detector(session, aux, seed)) for seed in session.params.seeds}
    for seed, detector in own.items():
        yield Entry("spg-plus", labelled, seed, scored(detector, session))
    for seed in session.params.seeds:
        detector = Detector.load(find_detector(published, aux, seed))
        yield Entry("SPG as published", labelled, seed, scored(detector, published))
    for seed, detector in zip(session.params.seeds, free, strict=True):
        yield Entry("free dense guides, trained", labelled, seed, scored(detector, published))
    for seed in session.params.seeds:
        make = patchwise(partial(logistic_regression, store, seed))
        yield Entry("logistic regression", labelled, seed, make)
    yield Entry("intra-image dissimilarity", "nothing", None, patchwise(dissimilarity))
    yield from _few_shot(session, name, target, own, normals, patchwise)
    if len(np.unique(target.array("category").astype(object))) > 1:
        session.console.say(
            f"No transductive method on {name}: its categories are products of their own, and "
            "mutual scoring takes one product at a time."
        )
        return
    first = session.params.seeds[0]  # by far the slowest, and its seed only draws the others
    make = patchwise(partial(mutual_scoring, target, first))
    yield Entry("mutual scoring", transductive(target), first, make)


def _free(published: Session, store: "FeatureStore") -> "list[Detector]":
    """Trained as published on ±axes instead of atoms, all seeds in one pass."""
    from spg_pipe.baselines.free import free_dictionary
    from spg_pipe.detector_training import Rules, train_guides_together
    from spg_pipe.guides.train import GuideRun

    params, axes = published.params, free_dictionary(store)
    runs = [GuideRun(axes, params.guides, seed) for seed in params.seeds]
    with published.console.progress("train free guides") as update:
        made = train_guides_together(
            store,
            runs,
            params.method,
            [Rules(params.score, params.decision)] * len(runs),
            device=choose_device(published.device),
            cache=published.cache,
            progress=update,
        )
    return [detector for detector, _ in made]


def _few_shot(
    session: Session,
    name: str,
    target: "FeatureStore",
    detectors: "dict[int, Detector]",
    normals: int,
    patchwise: Callable[..., Make],
) -> Iterator[Entry]:
    from spg_pipe.baselines.mahalanobis import mahalanobis
    from spg_pipe.few_shot import BANK, banks_of, score_few_shot
    from spg_pipe.store.reader import FeatureStore

    dataset = find_dataset(session.params, f"{name}/train")
    categories = sorted(set(target.array("category").tolist()))
    params, device = session.params, choose_device(session.device)
    try:
        paths = [extract(session, dataset, limit=normals, categories=[one]) for one in categories]
        stores = [FeatureStore(path) for path in dict.fromkeys(paths)]
        banks = banks_of(stores, target, params.bank, sigma=params.score.sigma, device=device)
    except SpgError as error:
        session.console.say(f"No few-shot methods on {name}: {error}")
        return

    def scored(detector: "Detector | None") -> Make:
        return lambda path: score_few_shot(detector, banks, target, path, device=device)

    yield Entry(BANK, banks.sees, None, scored(None))
    yield Entry("Mahalanobis", banks.sees, None, patchwise(partial(mahalanobis, banks, target)))
    for seed, detector in detectors.items():
        sees = f"labelled auxiliary set; {banks.sees}"
        yield Entry(f"spg-plus + {BANK}", sees, seed, scored(detector))


def _row(
    session: Session, aux: str, target: "FeatureStore", entries: Sequence[Entry]
) -> dict[str, Any]:
    """Mean and deviation over seeds; the interval and the seconds are of the first."""
    from spg_pipe.evaluation import evaluate_scores

    tables, seconds, ranges = [], 0.0, {}
    for number, entry in enumerate(entries):
        place = session.paths.compared(entry.method, aux, target.spec.dataset, entry.seed)
        start = time.perf_counter()
        scores = entry.make(place)
        if number == 0:
            seconds = time.perf_counter() - start
            ranges = _intervals(scores, target)
        tables.append(evaluate_scores(scores, target, session.params.metrics).rows[-1])
    first = tables[0]
    row: dict[str, Any] = {
        "auxiliary": aux,
        "dataset": first["dataset"],
        "split": first["split"],
        "method": entries[0].method,
        "sees": entries[0].sees,
        "backbone": first["backbone"],
        "method_protocol": first["method_protocol"],
        "protocol": first["protocol"],
        "resolution": first["resolution"],
        "seeds": ";".join(str(entry.seed) for entry in entries if entry.seed is not None),
    }
    for metric in METRICS:
        values = np.array([table.get(metric, np.nan) for table in tables], float)
        row[metric] = float(values.mean())
        row[f"{metric}_std"] = float(values.std(ddof=1)) if len(values) > 1 else np.nan
        if metric in ranges:
            row[f"{metric}_low"], row[f"{metric}_high"] = ranges[metric]
    return row | {"seconds": seconds}


def _intervals(scores: "Scores", store: "FeatureStore") -> dict[str, tuple[float, float]]:
    """Bootstrap over the target's images."""
    from spg_pipe.datasets.manifest import MaskState
    from spg_pipe.metrics.bootstrap import CategoryImages, intervals, pixel_histograms

    table, found = scores.table, []
    for category in dict.fromkeys(table["category"]):
        chosen = np.flatnonzero(table["category"] == category)
        states = table["mask_state"].to_numpy()[chosen]

        def pairs(rows: np.ndarray = chosen) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for start in range(0, len(rows), 64):
                part = rows[start : start + 64]
                yield from zip(scores.maps(part), store.masks(part) > 0, strict=True)

        normal, anomalous = pixel_histograms(pairs(), *scores.bounds(chosen))
        known = (states != MaskState.MISSING)[:, None]
        found.append(
            CategoryImages(
                table["label"].to_numpy()[chosen],
                table["score"].to_numpy()[chosen],
                normal * known,
                anomalous * known,
            )
        )
    return {name: (one.low, one.high) for name, one in intervals(found).items()}


def _table(rows: Sequence[dict[str, Any]], aux: str, target: str) -> Table:
    chosen = [row for row in rows if (row["auxiliary"], row["dataset"]) == (aux, target)]
    lines = tuple(
        (
            row["method"],
            row["sees"],
            *(_figure(row, metric) for metric in METRICS),
            f"{row['seconds']:.1f}",
        )
        for row in chosen
    )
    first = chosen[0]
    caption = (
        f"{aux} → {target} ({first['split']} split); {first['backbone']}; metrics protocol "
        f"{first['protocol']}, resolution {first['resolution']}; mean ± deviation over seeds "
        f"{first['seeds']}, and the 95 % bootstrap interval over images of the first. Seconds: "
        "judging the target once, and making what is not trained (the bank's few images apart)."
    )
    heads = ("Method", "Sees", "Image AUROC", "Pixel AUROC", "Pixel AP", "AUPRO@0.3", "Seconds")
    return Table(caption, heads, lines)


def _figure(row: dict[str, Any], metric: str) -> str:
    value, deviation = row[metric], row[f"{metric}_std"]
    if np.isnan(value):
        return "–"
    text = f"{value:.3f}" + ("" if np.isnan(deviation) else f" ± {deviation:.3f}")
    if f"{metric}_low" in row:
        text += f" [{row[f'{metric}_low']:.3f}, {row[f'{metric}_high']:.3f}]"
    return text
