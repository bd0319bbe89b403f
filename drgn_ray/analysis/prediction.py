"""What is known of the volumes of a sketch, predicted for every particle from its latent.

Shape letters: N particles, Z latent dimensions, n volumes of a sketch, P volume components, T what is predicted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from drgn_ray.progress import Progress

FOLDS = 5
CHUNK = 20_000  # particles that are predicted at a time
PENALTIES = np.logspace(-6, 3, 10)  # of ridge regressions, each of which chooses one by itself


class Predictor(NamedTuple):
    """The regression that told left-out volumes best.

    Attributes
    ----------
    name
        Which of those that were tried.
    r2
        Cross-validated R²: a row for each thing predicted, a column for each regression.
    overall
        The same of all things together, weighted by their variance.
    """

    name: str
    model: Any  # scikit-learn's
    r2: pd.DataFrame
    overall: pd.Series

    def predict(self, z: Float[np.ndarray, "N Z"], chunk: int = CHUNK) -> pd.DataFrame:
        """Predict for every particle, `chunk` of them at a time."""
        told = _in_chunks(self._told, z, "predict", chunk)
        return pd.DataFrame(told, columns=self.r2.index)

    def table(self) -> pd.DataFrame:
        """R² of all regressions, with the name and the R² of the one that is taken."""
        columns = {"regression": self.name, "r2": self.r2[self.name], **self.r2.add_prefix("r2_")}
        return pd.DataFrame(columns).rename_axis("predicted")

    def __str__(self) -> str:
        tried = ", ".join(f"{name} {value:.3f}" for name, value in self.overall.items())
        each = ", ".join(f"{name} {value:.3f}" for name, value in self.r2[self.name].items())
        return f"cross-validated R²: {tried}; taken: {self.name} ({each})"

    def _told(self, z: Float[np.ndarray, "n Z"]) -> Float32[np.ndarray, "n T"]:
        return self.model.predict(z).astype(np.float32).reshape(len(z), len(self.r2))


def standardised(z: Float[np.ndarray, "N Z"]) -> Float[np.ndarray, "N Z"]:
    """Latents about 0, of variance 1; all axes are scaled alike, or those without meaning would count as the others."""
    return (z - z.mean(axis=0)) / z.std(axis=0).max()


def fit_predictor(z: Float[np.ndarray, "n Z"], known: pd.DataFrame) -> Predictor:
    """Fit what is known of volumes as a function of their (standardised) latents.

    Tried are ridge regressions on z and on its second-order polynomials, the mean of the five nearest neighbours, and a
    network of two layers of 32 units.  Five-fold cross-validation on the sketch decides.  Its R² says how well a
    latent's volume is known without decoding it; not how well the latent, or the volume, is known.

    Parameters
    ----------
    known
        A row for each volume, a column for each thing to predict.
    """
    target = known.to_numpy().squeeze()  # one thing is a vector, as some regressions want it
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    r2, overall = {}, {}
    models = _candidates()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a network that is still getting better is judged as it is
        for name, model in models.items():
            predicted = np.asarray(cross_val_predict(model, z, target, cv=folds)).reshape(target.shape)
            r2[name] = r2_score(target, predicted, multioutput="raw_values")
            overall[name] = r2_score(target, predicted, multioutput="variance_weighted")
        best = max(overall, key=lambda name: overall[name])
        fitted = models[best].fit(z, target)
    return Predictor(best, fitted, pd.DataFrame(r2, index=known.columns), pd.Series(overall))


def _candidates() -> dict[str, Any]:
    """Regressions by name, simple ones first."""
    network = MLPRegressor(
        hidden_layer_sizes=(32, 32), activation="tanh", solver="lbfgs", alpha=0.1, max_iter=500, random_state=0
    )
    return {
        "ridge": RidgeCV(PENALTIES),
        "quadratic": make_pipeline(PolynomialFeatures(2, include_bias=False), RidgeCV(PENALTIES)),
        "neighbours": KNeighborsRegressor(5, weights="distance"),
        "network": TransformedTargetRegressor(network, transformer=StandardScaler()),
    }


def nearest_state(
    scores: Float[np.ndarray, "N P"], of_sketch: Float[np.ndarray, "n P"], states: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " N"]:
    """State of the volume of the sketch that is nearest to each particle's predicted volume."""
    return _in_chunks(KNeighborsClassifier(1).fit(of_sketch, states).predict, scores, "states", CHUNK)


def _in_chunks(
    predict: Callable[[np.ndarray], np.ndarray], points: Float[np.ndarray, "N K"], label: str, chunk: int
) -> np.ndarray:
    """Predict for some points at a time: what lies between a million latents and their scores is large."""
    parts = []
    with Progress(label, len(points), "particles") as progress:
        for start in range(0, len(points), chunk):
            parts.append(predict(points[start : start + chunk]))
            progress.update(len(parts[-1]))
    return np.concatenate(parts)
