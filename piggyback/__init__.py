"""Certified bilevel learning of convex regularizers: reconstruction,
hypergradients with error bounds, training.

What is not exported here is imported from its room, as
``piggyback.solvers.nonlinear_cg`` or ``piggyback.hypergradients.literature``.
"""

__version__ = "0.1.0"

from piggyback.certificates.certify import Hypergradient
from piggyback.forward.adjointness import check_adjoint
from piggyback.forward.base import ForwardOperator
from piggyback.forward.blur import ValidBlur
from piggyback.forward.sampling import Inpainting, SuperResolution
from piggyback.hypergradients.api import assess, hypergradient
from piggyback.hypergradients.implicit import (
    ImplicitCG,
    ImplicitMINRES,
    Neumann,
)
from piggyback.hypergradients.on_demand import Assessment
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.hypergradients.refinement import Refined
from piggyback.layer.call import Report
from piggyback.layer.proximal import prox as _prox
from piggyback.layer.reconstruction import Reconstruction, reconstruct
from piggyback.problems.pair import Accuracy, WarmStart
from piggyback.problems.regularizer import Regularizer
from piggyback.problems.regularizer import know_prox as _know_prox
from piggyback.solvers.stopping import NotConverged, Schedule, Status
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.data.dense import DenseQuadratic
from piggyback.terms.data.least_squares import LeastSquares
from piggyback.terms.data.masked import MaskedDenoising
from piggyback.terms.losses import Loss, SquaredError
from piggyback.terms.penalties import Charbonnier, Huber, LogCosh
from piggyback.terms.potentials import Potential
from piggyback.training.bilevel import BilevelOracle, BilevelSettings
from piggyback.training.descent import AdaptiveDescent, DescentSettings
from piggyback.training.samples import Samples
from piggyback.training.stochastic import StochasticDescent, StochasticSettings

# regularizers cannot import the layer, which solves for their proximal map:
# the package brings the two together, whichever of its rooms is imported
_know_prox(_prox)

__all__ = [
    "Accuracy",
    "AdaptiveDescent",
    "Assessment",
    "BilevelOracle",
    "BilevelSettings",
    "Charbonnier",
    "DataTerm",
    "Deblurring",
    "Denoising",
    "DenseQuadratic",
    "DescentSettings",
    "ForwardOperator",
    "Huber",
    "Hypergradient",
    "ImplicitCG",
    "ImplicitMINRES",
    "Inpainting",
    "LeastSquares",
    "LogCosh",
    "Loss",
    "MaskedDenoising",
    "Neumann",
    "NotConverged",
    "Piggyback",
    "Potential",
    "Reconstruction",
    "Refined",
    "Regularizer",
    "Report",
    "Samples",
    "Schedule",
    "SquaredError",
    "Status",
    "StochasticDescent",
    "StochasticSettings",
    "SuperResolution",
    "ValidBlur",
    "WarmStart",
    "assess",
    "check_adjoint",
    "hypergradient",
    "reconstruct",
]
