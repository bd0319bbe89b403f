"""How well a latent space tells what is known to be true; cross-validated, so that zdim cannot flatter."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

FOLDS = 5


def continuous_agreement(z: Float[np.ndarray, "N Z"], value: Float[np.ndarray, " N"]) -> float:
    """Spearman correlation of a known number with its best linear read-out of z: 0 is none, 1 is perfect."""
    read_out = cross_val_predict(LinearRegression(), z, value, cv=FOLDS)
    return float(np.corrcoef(rankdata(read_out), rankdata(value))[0, 1])


def discrete_agreement(z: Float[np.ndarray, "N Z"], label: Bool[np.ndarray, " N"]) -> float:
    """Share of particles whose label the 20 nearest neighbours in z tell right."""
    return float(np.mean(cross_val_predict(KNeighborsClassifier(20), z, label, cv=FOLDS) == label))


def volume_correlation(first: Float[np.ndarray, "D D D"], second: Float[np.ndarray, "D D D"]) -> float:
    """Pearson correlation of two volumes."""
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
