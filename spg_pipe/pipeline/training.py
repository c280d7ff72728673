"""Feature stores of auxiliary sets → SAEs → detectors."""

from pathlib import Path

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
    from spg_pipe.detector import train_guides as run
    from spg_pipe.guides.train import training_notes
    from spg_pipe.sae.run import SaeRun

    features = store_of_dataset(session, find_dataset(session.params, aux), store)
    params = session.params
    source = sae or find_sae(session, features, aux, seed)
    with session.console.progress(f"train-guides {aux} seed {seed}") as update:
        detector, curve = run(
            features,
            SaeRun.load(source),
            params.guides,
            params.method,
            params.score,
            seed=seed,
            device=choose_device(session.device),
            cache=session.cache,
            progress=update,
        )
    path = session.place(
        session.paths.detector(aux, seed),
        detector.fingerprint,
        own=store is None and sae is None,
    )
    header = ",".join(curve[0])
    lines = [",".join(f"{value:.8g}" for value in row.values()) for row in curve]
    detector.save(path, "\n".join([header, *lines]) + "\n")
    session.console.say(f"Detector of {aux}, seed {seed} → {path}")
    for note in training_notes(features):
        session.console.say(f"  note: {note}")
    return path
