"""What all voxels of a scan say together of the priors of its weak molecules and macromolecules.

One voxel knows next to nothing of a weak molecule or of a peak of the macromolecules, so the fit leans on their usual
ratio to the others. No brain has just the usual ratios, and what the prior is off by returns as bias in the molecules
beside them. Over a thousand voxels the ratios of THIS brain are known well: with the estimate y_n of a voxel without
these priors, its covariance C_n and the priors' own spread S s_n^2 (s_n the voxel's scale), the mean ratio is

    m = (P + SUM_n s_n^2 W_n)^-1 (P m_0 + SUM_n s_n W_n y_n),    W_n = (C_n + s_n^2 S)^-1,

P and m_0 precision and mean of the usual ratios over brains (empirical Bayes: Efron and Morris 1973, doi:10.1080/
01621459.1973.10481350). Each voxel then still departs from it as before.
"""

from __future__ import annotations

import numpy as np


def scan_ratios(
    normal: np.ndarray,
    rhs: np.ndarray,
    scale: np.ndarray,
    columns: np.ndarray,
    prior_sd: np.ndarray,
    usual: np.ndarray,
) -> np.ndarray:
    """Return the mean ratios of some columns to the voxels' scale.

    Parameters
    ----------
    normal, rhs
        (voxel, unknown, unknown) and (voxel, unknown): normal equations of the voxels, priors included.
    scale
        (voxel,) amount of the whole in each voxel, in the unit of the unknowns.
    columns
        (column,) int: unknowns with a Gaussian prior of mean `usual` times scale and SD `prior_sd` times scale.
    prior_sd, usual
        (column,).
    """
    precision = (prior_sd * scale[:, None]) ** -2.0
    free, target = normal.copy(), rhs.copy()
    free[:, columns, columns] -= precision
    target[:, columns] -= precision * usual * scale[:, None]
    others = np.setdiff1d(np.arange(rhs.shape[1]), columns)
    across = free[:, columns[:, None], others[None, :]]
    solved = np.linalg.solve(
        free[:, others[:, None], others[None, :]],
        np.concatenate([np.swapaxes(across, 1, 2), target[:, others, None]], axis=2),
    )
    gram = free[:, columns[:, None], columns[None, :]] - across @ solved[:, :, :-1]
    gram = 0.5 * (gram + np.swapaxes(gram, 1, 2))
    score = target[:, columns] - (across @ solved[:, :, -1:])[:, :, 0]
    # W = G - G (G + S^-1)^-1 G and W y = b - G (G + S^-1)^-1 b, with b = G y
    inner = gram + precision[:, :, None] * np.eye(len(columns))
    both = gram @ np.linalg.solve(inner, np.concatenate([gram, score[:, :, None]], axis=2))
    weight, pulled = gram - both[:, :, :-1], score - both[:, :, -1]
    total = np.diag(prior_sd**-2.0) + np.sum(weight * (scale**2)[:, None, None], axis=0)
    return np.asarray(np.linalg.solve(total, usual * prior_sd**-2.0 + np.sum(pulled * scale[:, None], axis=0)))
