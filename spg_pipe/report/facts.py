"""What stands behind the numbers, read from the artefacts: settings, training, origin, licences."""

import re
from collections.abc import Iterable, Mapping, Sequence

from spg_pipe.decision.maps import SIGMA
from spg_pipe.guides.model import TAU
from spg_pipe.recipe.params import Params
from spg_pipe.report import kinds
from spg_pipe.report.inputs import AuxiliaryRun, DirectionRuns, SeedRun
from spg_pipe.report.tables import UNDEFINED, Table

_SHORT = 16
"""Hex digits of a fingerprint that are shown."""


def summary(directions: Sequence[DirectionRuns]) -> str:
    """What no number may stand without, in a sentence."""
    scored = directions[0].runs[0].scores.record
    metrics = directions[0].runs[0].metrics.provenance.metrics
    layers = ", ".join(scored.backbone.layers)
    seeds = dict.fromkeys(str(run.seed) for direction in directions for run in direction.runs)
    plural = "s" if len(seeds) > 1 else ""
    return (
        f"Backbone {_seen_at(directions)}, layers {layers} ({scored.backbone.norm}-norm); "
        f"{scored.method}; method protocol {scored.method_protocol}; metrics protocol "
        f"{metrics.protocol}, accumulator {metrics.accumulator}, resolution {metrics.resolution}; "
        f"seed{plural} {', '.join(seeds)}."
    )


def _seen_at(directions: Sequence[DirectionRuns]) -> str:
    """Backbone and pixels, of every way that a target was looked at."""
    specs = [direction.runs[0].scores.record.backbone for direction in directions]
    return ", ".join(dict.fromkeys(spec.seen_at for spec in specs))


def recipe_table(params: Params, directions: Sequence[DirectionRuns]) -> Table:
    """Settings, as the first scores and metrics hold them; only those that had an effect."""
    run = directions[0].runs[0]
    scored, metrics, detector = run.scores.record, run.metrics.provenance.metrics, run.detector
    backbone, sae = scored.backbone, detector.sae.params or params.sae
    length = f"{sae.tokens:,} tokens a layer" if sae.tokens else f"{sae.epochs} epochs"
    batch = f"{sae.batch_images} images" if sae.batch_images else f"{sae.batch_tokens} tokens"
    rows = [
        ("Configuration", params.name),
        ("Backbone", f"{backbone.alias} ({backbone.model})"),
        ("Weights", f"{backbone.weights}; licence: {backbone.licence}"),
        ("Image size", f"{_seen_at(directions)}; {backbone.preprocess.interpolation}"),
        ("Layers", f"{', '.join(backbone.layers)} ({backbone.norm}-norm)"),
        ("Position embedding", str(backbone.pos_embed)),
        ("Method protocol", scored.method_protocol),
        ("Metrics protocol", f"{metrics.protocol}; {metrics.accumulator}; {metrics.resolution}"),
        ("Sparse autoencoder", f"C = {sae.dict_size}, k = {sae.k}, {length}, batches of {batch}"),
        ("Guides", kinds.guides_in_words(detector.guides)),
        ("Image score", kinds.image_score_in_words(run.rule)),
        ("Maps", f"blur σ = {SIGMA:g} px"),
    ]
    if kinds.has_temperature(detector.guides, run.rule):
        rows.append(("Temperature", f"τ = {TAU:g}"))
    if kinds.has_detection_feature(detector.guides, run.rule):
        rows.append(("Detection feature", detector.detection))
    if backbone.prefix != "cls":
        instead = "zeros" if backbone.prefix == "zeros" else "the mean patch token"
        rows.append(("CLS token", f"the backbone has none; in its place {instead}"))
    return Table("The recipe.", ("Setting", "Value"), tuple(rows))


def fitting_table(directions: Sequence[DirectionRuns]) -> Table:
    """What each detector was fitted on and what it scored, from the scores themselves."""
    runs = [run for direction in directions for run in direction.runs]
    notes = ["The target takes no part in fitting."]
    if any(run.detector.auxiliary.split == "test" for run in runs):
        notes.append(
            "The test split of an auxiliary set is the one that has masks; fitting on it is the "
            "published protocol (docs/method.md §5)."
        )
    return Table.of("What was fitted, and on what.", list(map(_fitted, runs)), notes)


def _fitted(run: SeedRun) -> dict[str, str]:
    scored, detector = run.scores.record, run.detector
    auxiliary = detector.auxiliary
    about = [f"{auxiliary.split} split"]
    if auxiliary.synthetic:
        about.append(auxiliary.supervision)
    if auxiliary.left_out:
        about.append(f"{auxiliary.left_out:,} left out: no mask or label")
    return {
        "Direction": f"{auxiliary.dataset} → {scored.dataset}",
        "Seed": str(run.seed),
        "Auxiliary images": f"{auxiliary.images:,} ({'; '.join(about)})",
        "SAE tokens seen": _by_layer(detector.sae.tokens_seen),
        "Guides": kinds.guides_in_words(detector.guides),
        "Target images": f"{scored.images:,} ({scored.split} split)",
    }


def _by_layer(counts: Mapping[str, int]) -> str:
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values())):,} a layer"
    return ", ".join(f"{layer}: {count:,}" for layer, count in counts.items())


def sae_table(aux: str, runs: Sequence[AuxiliaryRun], stability: Mapping[str, float]) -> Table:
    """Quality of the SAEs of one auxiliary set: one row for each seed and layer.

    Parameters
    ----------
    stability : dict of layer → mean over pairs of seeds; empty for a single one.
    """
    rows = []
    for run in runs:
        for layer, values in run.quality.items():
            rare = values.almost_dead_share
            cells = {
                "SAE": f"seed {run.seed}, layer {layer}",
                "R²": f"{values.r2:.3f}",
                "L0": f"{values.l0:.1f}",
                "Dead": f"{values.dead_share:.1%}",
                "Almost dead": UNDEFINED if rare is None else f"{rare:.1%}",
                "Dense": f"{values.dense_share:.1%}",
                "Tokens seen": f"{values.tokens_seen:,}",
                "Epochs": f"{values.epochs:.2f}",
            }
            rows.append(cells)
    gone = [str(run.seed) for run in runs if not run.quality]
    notes = [
        "R²: share of the tokens' variance that the reconstruction explains. L0: mean number of "
        "latents that a token uses. Dead: latents that no token of the auxiliary set uses. Almost "
        "dead: those that fewer than 1 of 100,000 tokens use (–: the set has no more tokens). "
        "Dense: those that more than 1 of 10 use."
    ]
    for layer, value in stability.items():
        notes.append(
            f"Layer {layer}: stability between seeds {value:.3f} (mean largest cosine of an atom "
            "with the atoms of another seed, dead latents left out; 1: the same dictionary)."
        )
    if gone:
        notes.append(f"The SAE of seed {', '.join(gone)} is no longer there.")
    return Table.of(f"Sparse autoencoders fitted on {aux}.", rows, notes)


def licences(directions: Sequence[DirectionRuns]) -> list[tuple[str, bool]]:
    """Licences of data and weights that the scores carry; True where they forbid commerce."""
    runs = [run for direction in directions for run in direction.runs]
    every = {licence for run in runs for licence in run.scores.record.licences}
    forbidding = re.compile(r"non-?commercial|-nc", re.IGNORECASE)
    return [(licence, bool(forbidding.search(licence))) for licence in sorted(every)]


def provenance_table(
    directions: Sequence[DirectionRuns], auxiliaries: Sequence[AuxiliaryRun]
) -> Table:
    """Fingerprints of every artefact behind a row of the tables."""
    stores = {(run.aux, run.seed): run.store for run in auxiliaries}
    rows = []
    for direction in directions:
        manifest = direction.manifest.fingerprint() if direction.manifest else None
        for run in direction.runs:
            scored = run.scores.record
            fingerprints = {
                "Scores": scored.fingerprint,
                "Detector": run.detector.fingerprint,
                "SAE": run.detector.sae.fingerprint,
                "Auxiliary store": stores[direction.direction.aux, run.seed],
                "Target store": scored.store,
                "Target manifest": manifest,
                "Weights": scored.backbone.weights_sha256,
            }
            short = {name: (whole or UNDEFINED)[:_SHORT] for name, whole in fingerprints.items()}
            rows.append({"Run": f"{direction.title}, seed {run.seed}"} | short)
    note = f"The first {_SHORT} of 64 hex digits; the artefacts hold them whole."
    return Table.of("Fingerprints (SHA-256).", rows, [note])


def versions_table(directions: Sequence[DirectionRuns]) -> Table:
    """Versions of the libraries that scored and evaluated."""
    runs = [run for direction in directions for run in direction.runs]
    scored = _versions(run.scores.record.versions for run in runs)
    evaluated = _versions(run.metrics.provenance.versions for run in runs)
    rows = tuple(
        (name, scored.get(name, UNDEFINED), evaluated.get(name, UNDEFINED))
        for name in dict.fromkeys([*scored, *evaluated])
    )
    return Table("Versions.", ("Library", "Scored with", "Evaluated with"), rows)


def _versions(runs: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Name → version, or several with slashes."""
    together: dict[str, dict[str, None]] = {}
    for versions in runs:
        for name, version in versions.items():
            together.setdefault(name, {})[version] = None
    return {name: " / ".join(every) for name, every in together.items()}
