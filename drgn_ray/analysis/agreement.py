"""How well a latent space tells what is known to be true; cross-validated, so that zdim cannot flatter."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

FOLDS = 5


def continuous_agreement(z: Float[np.ndarray, "N Z"], value: Float[np.ndarray, " N"]) -> float:
    """Spearman correlation of a known number with its best linear read-out of z: 0 is none, 1 is perfect."""
    return float(spearmanr(cross_val_predict(LinearRegression(), z, value, cv=FOLDS), value)[0])


def discrete_agreement(z: Float[np.ndarray, "N Z"], label: Bool[np.ndarray, " N"]) -> float:
    """Share of particles whose label the 20 nearest neighbours in z tell right."""
    return float((cross_val_predict(KNeighborsClassifier(20), z, label, cv=FOLDS) == label).mean())


def volume_correlation(first: Float[np.ndarray, "D D D"], second: Float[np.ndarray, "D D D"]) -> float:
    """Pearson correlation of two volumes."""
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
