"""Feature stores of auxiliary sets → SAEs → detectors."""

from collections.abc import Sequence
from pathlib import Path

from spg_pipe.checkpoint import Checkpoints, checkpoint_path
from spg_pipe.console import choose_device
from spg_pipe.find import find_dataset, store_of_dataset
from spg_pipe.find_runs import find_sae
from spg_pipe.session import Session


def train_sae(session: Session, aux: str, seed: int, *, store: Path | None = None) -> Path:
    """FeatureStore of the auxiliary set → SparseAutoencoder."""
    from spg_pipe.sae.train import train_sae as run

    features = store_of_dataset(session, find_dataset(session.params, aux), store)
    params = session.params
    with session.console.progress(f"train-sae {aux} seed {seed}", "tokens") as update:
        result, quality, curve = run(
            features,
            params.sae,
            params.method,
            seed=seed,
            device=choose_device(session.device),
            cache=session.cache,
            progress=lambda layer, done, total, loss: update(done, total, loss, layer),
        )
    path = session.place(
        session.paths.sae(aux, seed), result.config["fingerprint"], own=store is None
    )
    result.save(path, quality, curve)
    for layer, values in quality.items():
        session.console.say(
            f"  {layer}: R² {values['r2']:.3f}, L0 {values['l0']:.1f}, "
            f"dead {values['dead_share']:.1%}, {values['tokens_seen']:,} tokens"
        )
    session.console.say(f"SAE of {aux}, seed {seed} → {path}")
    return path


def train_guides(
    session: Session, aux: str, seed: int, *, store: Path | None = None, sae: Path | None = None
) -> Path:
    """FeatureStore + SparseAutoencoder → Detector."""
    return train_guides_of_seeds(session, aux, [seed], store=store, sae=sae)[0]


def train_guides_of_seeds(
    session: Session,
    aux: str,
    seeds: Sequence[int],
    *,
    store: Path | None = None,
    sae: Path | None = None,
) -> list[Path]:
    """FeatureStore + a SparseAutoencoder a seed → Detectors, in one pass over the store an epoch.

    A killed training goes on where its last checkpoint is, beside the first seed's detector.
    """
    from spg_pipe.detector import train_guides_together as run
    from spg_pipe.guides.train import GuideRun, run_fingerprint, training_notes
    from spg_pipe.sae.model import SaeRun

    features = store_of_dataset(session, find_dataset(session.params, aux), store)
    params, device = session.params, choose_device(session.device)
    runs = [
        GuideRun(SaeRun.load(sae or find_sae(session, features, aux, seed)), params.guides, seed)
        for seed in seeds
    ]
    own = store is None and sae is None
    key = run_fingerprint(features, runs, params.method, device)
    place = session.place(session.paths.detector(aux, seeds[0]), key, own=own)
    checkpoints = Checkpoints(checkpoint_path(place), say=session.console.say)
    named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    with session.console.progress(f"train-guides {aux} {named}") as update:
        results = run(
            features,
            runs,
            params.method,
            params.score,
            device=device,
            cache=session.cache,
            progress=update,
            checkpoints=checkpoints,
        )
    paths = []
    for seed, (detector, curve) in zip(seeds, results, strict=True):
        path = session.place(session.paths.detector(aux, seed), detector.fingerprint, own=own)
        header = ",".join(curve[0])
        lines = [",".join(f"{value:.8g}" for value in row.values()) for row in curve]
        detector.save(path, "\n".join([header, *lines]) + "\n")
        session.console.say(f"Detector of {aux}, seed {seed} → {path}")
        paths.append(path)
    checkpoints.remove()
    for note in training_notes(features):
        session.console.say(f"  note: {note}")
    return paths
