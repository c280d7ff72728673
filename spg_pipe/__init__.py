"""Zero-shot anomaly detection with sparse-projected guides over a precomputed feature store.

Its main types and functions, imported when first used (docs/notebook.md lists them):

>>> from spg_pipe import Manifest, FeatureStore, Detector  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spg_pipe.backbones import BackboneSpec as BackboneSpec
    from spg_pipe.backbones import load_backbone as load_backbone
    from spg_pipe.bank.fitted import FittedBank as FittedBank
    from spg_pipe.datasets.build import build_manifest as build_manifest
    from spg_pipe.datasets.manifest import Manifest as Manifest
    from spg_pipe.decision.calibration import Calibration as Calibration
    from spg_pipe.decision.calibration import Limits as Limits
    from spg_pipe.detector.evaluate import Evaluation as Evaluation
    from spg_pipe.detector.evaluate import evaluate_scores as evaluate_scores
    from spg_pipe.detector.make import DetectorPlan as DetectorPlan
    from spg_pipe.detector.make import make_detector as make_detector
    from spg_pipe.detector.scores import Scores as Scores
    from spg_pipe.detector.scores import score_store as score_store
    from spg_pipe.errors import SpgError as SpgError
    from spg_pipe.explain import Explanation as Explanation
    from spg_pipe.guides.kinds import ContrastGuides as ContrastGuides
    from spg_pipe.guides.kinds import TrainedGuides as TrainedGuides
    from spg_pipe.predict.notebook import Detector as Detector
    from spg_pipe.predict.notebook import Prediction as Prediction
    from spg_pipe.predict.regions import Region as Region
    from spg_pipe.predict.result import Result as Result
    from spg_pipe.recipe.data import Dataset as Dataset
    from spg_pipe.recipe.params import MethodParams as MethodParams
    from spg_pipe.recipe.params import Params as Params
    from spg_pipe.recipe.params import SaeParams as SaeParams
    from spg_pipe.recipe.params import load_params as load_params
    from spg_pipe.sae.model import SparseAutoencoder as SparseAutoencoder
    from spg_pipe.sae.run import SaeRun as SaeRun
    from spg_pipe.sae.train import train_sae as train_sae
    from spg_pipe.store.arrays import store_of_arrays as store_of_arrays
    from spg_pipe.store.extract import extract as extract
    from spg_pipe.store.lazy import open_dask as open_dask
    from spg_pipe.store.lazy import open_xarray as open_xarray
    from spg_pipe.store.reader import FeatureStore as FeatureStore

_HOMES = {
    "BackboneSpec": "backbones",
    "Calibration": "decision.calibration",
    "ContrastGuides": "guides.kinds",
    "Dataset": "recipe.data",
    "Detector": "predict.notebook",
    "DetectorPlan": "detector.make",
    "Evaluation": "detector.evaluate",
    "Explanation": "explain",
    "FeatureStore": "store.reader",
    "FittedBank": "bank.fitted",
    "Limits": "decision.calibration",
    "Manifest": "datasets.manifest",
    "MethodParams": "recipe.params",
    "Params": "recipe.params",
    "Prediction": "predict.notebook",
    "Region": "predict.regions",
    "Result": "predict.result",
    "SaeParams": "recipe.params",
    "SaeRun": "sae.run",
    "Scores": "detector.scores",
    "SparseAutoencoder": "sae.model",
    "SpgError": "errors",
    "TrainedGuides": "guides.kinds",
    "build_manifest": "datasets.build",
    "evaluate_scores": "detector.evaluate",
    "extract": "store.extract",
    "load_backbone": "backbones",
    "load_params": "recipe.params",
    "make_detector": "detector.make",
    "open_dask": "store.lazy",
    "open_xarray": "store.lazy",
    "score_store": "detector.scores",
    "store_of_arrays": "store.arrays",
    "train_sae": "sae.train",
}

__all__ = tuple(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"spg_pipe.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'spg_pipe' has no attribute {name!r}")
