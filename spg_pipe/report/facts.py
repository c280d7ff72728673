"""What stands behind the numbers, read from the artefacts: settings, training, origin, licences."""

from collections.abc import Iterable, Sequence
from typing import Any

from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.decision.maps import SIGMA
from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.guides.model import TAU
from spg_pipe.guides.trained.trainer import PUBLISHED
from spg_pipe.recipe.params import GuideParams, Params
from spg_pipe.report.inputs import AuxiliaryRun, DirectionRuns
from spg_pipe.report.tables import UNDEFINED, Table

_SHORT = 16
"""Hex digits of a fingerprint that are shown."""


def summary(params: Params, directions: Sequence[DirectionRuns]) -> str:
    """The recipe in a sentence: what no number may stand without."""
    backbone = directions[0].runs[0].scores.record.backbone
    metrics = params.metrics
    layers = ", ".join(backbone.layers)
    return (
        f"Backbone {_seen_at(directions)}, layers {layers} "
        f"({backbone.norm}-norm); method protocol {params.method.protocol}; metrics protocol "
        f"{metrics.protocol}, accumulator {metrics.accumulator}, resolution {metrics.resolution}; "
        f"seeds {', '.join(map(str, params.seeds))}."
    )


def _seen_at(directions: Sequence[DirectionRuns]) -> str:
    """Backbone and pixels, of every way that a target was looked at."""
    found = [d.runs[0].scores.record.backbone for d in directions]
    return ", ".join(dict.fromkeys(spec.seen_at for spec in found))


def recipe_table(params: Params, directions: Sequence[DirectionRuns]) -> Table:
    """Settings of the recipe; those of the backbone as the scores' stores hold them."""
    backbone = directions[0].runs[0].scores.record.backbone
    image = backbone.preprocess
    sae, guides, metrics = params.sae, params.guides, params.metrics
    length = f"{sae.tokens:,} tokens a layer" if sae.tokens else f"{sae.epochs} epochs"
    batch = f"{sae.batch_images} images" if sae.batch_images else f"{sae.batch_tokens} tokens"
    rows = (
        ("Configuration", params.name),
        ("Backbone", f"{backbone.alias} ({backbone.model})"),
        ("Weights", f"{backbone.weights}; licence: {backbone.licence}"),
        ("Image size", f"{_seen_at(directions)}; {image.interpolation}"),
        ("Layers", f"{', '.join(backbone.layers)} ({backbone.norm}-norm)"),
        ("Position embedding", str(backbone.pos_embed)),
        ("Method protocol", f"{params.method.protocol}; τ = {TAU}"),
        ("Metrics protocol", f"{metrics.protocol}; {metrics.accumulator}; {metrics.resolution}"),
        ("Sparse autoencoder", f"C = {sae.dict_size}, k = {sae.k}, {length}, batches of {batch}"),
        ("Guides", _guides(guides)),
        ("Detection feature", _detection_feature(params, backbone)),
        ("Maps", f"blur σ = {SIGMA} px"),
        ("Image score", _image_score(params)),
        ("Seeds", ", ".join(map(str, params.seeds))),
    )
    return Table("The recipe.", ("Setting", "Value"), rows)


def _guides(guides: GuideParams) -> str:
    if guides.kind == "contrast":
        return f"contrast, {guides.atoms} atoms a pair"
    return f"trained, {guides.epochs} epochs, batches of {PUBLISHED.batch_images} images"


def _image_score(params: Params) -> str:
    if params.score.rule == "published":
        return f"{params.score.image_score} (published rule)"
    used = [name for name, weight in params.decision.image.model_dump().items() if weight > 0]
    return f"additive: {', '.join(used)}"


def _detection_feature(params: Params, backbone: BackboneSpec) -> str:
    """`method.detection`, and what stands for CLS where the backbone has none."""
    feature, prefix = params.method.detection, backbone.prefix
    if feature != "cls" or prefix == "cls":
        return feature
    return f"cls; in its place {'zeros' if prefix == 'zeros' else 'the mean patch token'}"


def fitting_table(directions: Sequence[DirectionRuns]) -> Table:
    """What each detector was fitted on and what it scored, from the scores themselves."""
    rows = []
    for direction in directions:
        for run in direction.runs:
            scored = run.scores.record
            if scored.detector is None:
                continue
            auxiliary, guides = scored.detector.auxiliary, scored.detector.guides
            painted = auxiliary.synthetic
            rows.append(
                (
                    f"{auxiliary.dataset} → {scored.dataset}",
                    str(run.seed),
                    f"{auxiliary.images:,} ({auxiliary.split} split"
                    + (f"; {auxiliary.supervision}" if painted else "")
                    + (
                        f"; {auxiliary.left_out:,} left out: no mask or label)"
                        if auxiliary.left_out
                        else ")"
                    ),
                    _by_layer(scored.detector.sae.tokens_seen),
                    str(guides.epochs) if isinstance(guides, TrainedGuides) else "none",
                    f"{scored.images:,} ({scored.split} split)",
                )
            )
    columns = (
        "Direction",
        "Seed",
        "Auxiliary images",
        "SAE tokens seen",
        "Guide epochs",
        "Target images",
    )
    notes = (
        "The test split of an auxiliary set is the one that has masks; fitting on it is the "
        "published protocol (docs/method.md §5). The target takes no part in fitting.",
    )
    return Table("What was fitted, and on what.", columns, tuple(rows), notes)


def _by_layer(counts: dict[str, Any]) -> str:
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values())):,} a layer"
    return ", ".join(f"{layer}: {count:,}" for layer, count in counts.items())


def sae_table(aux: str, runs: Sequence[AuxiliaryRun], stability: dict[str, float]) -> Table:
    """Quality of the SAEs of one auxiliary set, a row a seed and layer.

    Parameters
    ----------
    stability : dict of layer → mean over pairs of seeds; empty for a single one.
    """
    rows = []
    for run in runs:
        for layer, values in run.quality.items():
            rows.append(
                (
                    f"seed {run.seed}, layer {layer}",
                    f"{values['r2']:.3f}",
                    f"{values['l0']:.1f}",
                    f"{values['dead_share']:.1%}",
                    "–" if (rare := values["almost_dead_share"]) is None else f"{rare:.1%}",
                    f"{values['dense_share']:.1%}",
                    f"{values['tokens_seen']:,}",
                    f"{values['epochs']:.2f}",
                )
            )
    gone = [str(run.seed) for run in runs if not run.quality]
    notes = [
        "R²: share of the tokens' variance that the reconstruction explains. L0: latents in use a "
        "token. Dead: latents that no token of the auxiliary set uses. Almost dead: fewer than 1 "
        "of 100,000 (–: the set has no more tokens). Dense: more than 1 of 10."
    ]
    for layer, value in stability.items():
        notes.append(
            f"Layer {layer}: stability between seeds {value:.3f} (mean largest cosine of an atom "
            "with the atoms of another seed, dead latents left out; 1: the same dictionary)."
        )
    if gone:
        notes.append(f"The SAE of seed {', '.join(gone)} is no longer there.")
    columns = ("SAE", "R²", "L0", "Dead", "Almost dead", "Dense", "Tokens seen", "Epochs")
    return Table(f"Sparse autoencoders fitted on {aux}.", columns, tuple(rows), tuple(notes))


def licences(directions: Sequence[DirectionRuns]) -> list[tuple[str, bool]]:
    """Licences of data and weights that the scores carry; True where they forbid commerce."""
    every = {
        str(licence)
        for direction in directions
        for run in direction.runs
        for licence in run.scores.record.licences
    }
    return [(licence, non_commercial(licence)) for licence in sorted(every)]


def non_commercial(licence: str) -> bool:
    """Whether a licence's text speaks of non-commercial use."""
    text = licence.lower().replace("noncommercial", "non-commercial")
    return "non-commercial" in text or "-nc" in text


def provenance_table(
    directions: Sequence[DirectionRuns], auxiliaries: Sequence[AuxiliaryRun]
) -> Table:
    """Fingerprints of every artefact behind a row of the tables."""
    trained = {(run.aux, run.seed): run for run in auxiliaries}
    rows = []
    for direction in directions:
        for run in direction.runs:
            scored = run.scores.record
            detector = trained[direction.direction.aux, run.seed].detector
            rows.append(
                (
                    f"{direction.direction.aux} → {direction.direction.target}, seed {run.seed}",
                    _short(scored.fingerprint),
                    _short(scored.detector.fingerprint if scored.detector else None),
                    _short(scored.detector.sae.fingerprint if scored.detector else None),
                    _short(detector["store"] if detector else None),
                    _short(scored.store),
                    _short(direction.manifest.fingerprint() if direction.manifest else None),
                    _short(scored.backbone.weights_sha256),
                )
            )
    columns = (
        "Run",
        "Scores",
        "Detector",
        "SAE",
        "Auxiliary store",
        "Target store",
        "Target manifest",
        "Weights",
    )
    note = f"The first {_SHORT} of 64 hex digits; the artefacts' config.json hold them whole."
    return Table("Fingerprints (SHA-256).", columns, tuple(rows), (note,))


def versions_table(directions: Sequence[DirectionRuns]) -> Table:
    """Versions of the libraries that scored and evaluated."""
    runs = [run for direction in directions for run in direction.runs]
    scored = _versions(run.scores.record.versions for run in runs)
    evaluated = _versions(run.provenance.versions for run in runs)
    rows = tuple(
        (name, scored.get(name, UNDEFINED), evaluated.get(name, UNDEFINED))
        for name in dict.fromkeys([*scored, *evaluated])
    )
    return Table("Versions.", ("Library", "Scored with", "Evaluated with"), rows)


def _versions(found: Iterable[dict[str, str]]) -> dict[str, str]:
    """Name → version, or several with slashes."""
    together: dict[str, dict[str, None]] = {}
    for versions in found:
        for name, version in versions.items():
            together.setdefault(name, {})[version] = None
    return {name: " / ".join(every) for name, every in together.items()}


def _short(fingerprint: str | None) -> str:
    return str(fingerprint)[:_SHORT] if fingerprint else UNDEFINED
