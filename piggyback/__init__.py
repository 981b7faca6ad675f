"""Certified bilevel learning of convex regularizers: saddle problems,
hypergradients, certificates, descent."""

__version__ = "0.1.0"

from piggyback.certificates.bounds import GradientBound, local_bound
from piggyback.certificates.certify import Certification, CertifiedGradient
from piggyback.certificates.loss import LossInterval, corrected_loss, plain_loss
from piggyback.certificates.worst_case import worst_case_bound
from piggyback.forward.adjointness import AdjointReport, check_adjoint
from piggyback.forward.base import (
    ForwardOperator,
    Inpainting,
    SuperResolution,
    ValidBlur,
)
from piggyback.hypergradients.api import Hypergradient, hypergradient
from piggyback.hypergradients.base import DirectMethod, HypergradientMethod
from piggyback.hypergradients.capabilities import (
    Capabilities,
    Guarantee,
    Refused,
)
from piggyback.hypergradients.dualised import Dualised
from piggyback.hypergradients.implicit import (
    ImplicitCG,
    ImplicitMINRES,
    Neumann,
)
from piggyback.hypergradients.literature.bda import BDA
from piggyback.hypergradients.literature.bome import BOME
from piggyback.hypergradients.literature.iaptt import IAPTT
from piggyback.hypergradients.literature.one_step import JacobianFree, OneStep
from piggyback.hypergradients.literature.unrolled import Truncated, Unrolled
from piggyback.hypergradients.literature.value_function import (
    BVFIM,
    ValueFunction,
)
from piggyback.hypergradients.on_demand import Assessment, OnDemand
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.hypergradients.refinement import Refined
from piggyback.layer.call import Report
from piggyback.layer.reconstruction import Reconstruction, reconstruct
from piggyback.operators.base import DenseOperator, LinearOperator
from piggyback.problems.cone import ConeProgram
from piggyback.problems.pair import Accuracy, Sensitivity, WarmStart
from piggyback.problems.regularizer import Regularizer
from piggyback.problems.saddle import SaddleProblem
from piggyback.problems.smooth import SmoothProblem
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.gradient import GradientDescent
from piggyback.solvers.loop import NotConverged, Outcome, Schedule, Status
from piggyback.solvers.lower import (
    certified_distance,
    certified_energy,
    solve_lower,
)
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.pdhg import PDHG
from piggyback.solvers.quasi_newton import QuasiNewton
from piggyback.terms.data.least_squares import LeastSquares
from piggyback.terms.data.masked import MaskedDenoising
from piggyback.terms.data.quadratic import (
    DataTerm,
    Deblurring,
    Denoising,
    DenseQuadratic,
)
from piggyback.terms.energies import ModuleEnergy, SmoothEnergy, is_convex_along
from piggyback.terms.losses import Loss, SquaredError
from piggyback.terms.penalties import Charbonnier, Huber, LogCosh, Penalty
from piggyback.terms.potentials import Potential
from piggyback.training.bilevel import BilevelOracle, BilevelSettings, Samples
from piggyback.training.descent import (
    AdaptiveDescent,
    DescentSettings,
    DescentState,
    StopReason,
)
from piggyback.training.driven import Control, DrivenDescent
from piggyback.training.oracle import Evaluation, Oracle
from piggyback.training.rate import RateRace
from piggyback.training.stochastic import StochasticDescent, StochasticSettings
from piggyback.training.tolerance import GradientQuality, ToleranceRule

__all__ = [
    "BDA",
    "BOME",
    "BVFIM",
    "IAPTT",
    "PDHG",
    "AcceleratedGradient",
    "Accuracy",
    "AdaptiveDescent",
    "AdjointReport",
    "Assessment",
    "BilevelOracle",
    "BilevelSettings",
    "Capabilities",
    "Certification",
    "CertifiedGradient",
    "Charbonnier",
    "ConeProgram",
    "Control",
    "DataTerm",
    "Deblurring",
    "Denoising",
    "DenseOperator",
    "DenseQuadratic",
    "DescentSettings",
    "DescentState",
    "DirectMethod",
    "DrivenDescent",
    "Dualised",
    "Evaluation",
    "ForwardOperator",
    "GradientBound",
    "GradientDescent",
    "GradientQuality",
    "Guarantee",
    "Huber",
    "Hypergradient",
    "HypergradientMethod",
    "ImplicitCG",
    "ImplicitMINRES",
    "Inpainting",
    "JacobianFree",
    "LeastSquares",
    "LinearOperator",
    "LogCosh",
    "Loss",
    "LossInterval",
    "MaskedDenoising",
    "ModuleEnergy",
    "Neumann",
    "NonlinearCG",
    "NotConverged",
    "OnDemand",
    "OneStep",
    "Oracle",
    "Outcome",
    "Penalty",
    "Piggyback",
    "Potential",
    "QuasiNewton",
    "RateRace",
    "Reconstruction",
    "Refined",
    "Refused",
    "Regularizer",
    "Report",
    "SaddleProblem",
    "Samples",
    "Schedule",
    "Sensitivity",
    "SmoothEnergy",
    "SmoothProblem",
    "SquaredError",
    "Status",
    "StochasticDescent",
    "StochasticSettings",
    "StopReason",
    "SuperResolution",
    "ToleranceRule",
    "Truncated",
    "Unrolled",
    "ValidBlur",
    "ValueFunction",
    "WarmStart",
    "certified_distance",
    "certified_energy",
    "check_adjoint",
    "corrected_loss",
    "hypergradient",
    "is_convex_along",
    "local_bound",
    "plain_loss",
    "reconstruct",
    "solve_lower",
    "worst_case_bound",
]
