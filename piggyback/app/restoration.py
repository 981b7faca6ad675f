"""Restore one image with a trained regularizer, and say how far the result may
be from the exact minimiser."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.layer.reconstruction import Reconstruction
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.stopping import NotConverged
from piggyback.terms.data.base import DataTerm

# certified RMS error of a reconstruction unless another is asked for: half a
# grey level of 255, which costs 0.005 dB at most in practice
TOLERANCE = 2e-3


@dataclass(frozen=True, eq=False)
class Restored:
    """``pixels`` ``(channels, height, width)``, not clipped, in the precision
    of the data.

    ``error_bound``: certified ``||x - x*||`` (Euclidean); ``data_bound``:
    certified ``||B (x - x*)||``, the same where ``B`` is the identity.

    ``operator_applications``: pairs of one ``K`` and one ``K^T``, certification
    included; ``seconds`` likewise.
    """

    pixels: Tensor
    error_bound: float
    data_bound: float
    converged: bool
    operator_applications: float
    seconds: float


def restore(
    regularizer: Regularizer, data: DataTerm, tolerance: float
) -> Restored:
    """The image that belongs to ``data`` (one sample).

    The solve and its certificate are those of ``Reconstruction``.

    Args:
        regularizer: The model, in the precision and on the device of ``data``.
        data: The data term of one observation.
        tolerance: Root-mean-square error of a pixel, in grey values.

    Returns:
        The image, on the device of ``data``, and what is known of its error.

    Raises:
        ValueError: For data that the regularizer cannot be used on.
    """
    begin = time.perf_counter()
    layer = Reconstruction(regularizer, tolerance)
    with torch.no_grad():
        x, report = layer.with_report(data)
    distance = float(report.distance)
    return Restored(
        pixels=x[0],
        error_bound=distance,
        # eq. 10: the certified distance is this over sqrt(mu)
        data_bound=distance * data.strong_convexity**0.5,
        converged=bool(report.converged.all()),
        operator_applications=report.applications,
        seconds=time.perf_counter() - begin,
    )


@contextmanager
def unconverged_is_reported() -> Iterator[None]:
    """Within this, solves that end early do not warn: whoever enters it reports
    ``converged`` for every image.

    To be entered by the thread that starts the others, since filters of
    warnings are those of the process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConverged)
        yield
