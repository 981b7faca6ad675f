"""Certified bilevel learning of convex regularizers: saddle problems, hypergradients, certificates, descent."""

from piggyback.adjointness import AdjointReport, check_adjoint
from piggyback.bilevel import BilevelOracle, BilevelSettings, Samples
from piggyback.certificates.corrected_loss import LossInterval, corrected_loss, plain_loss
from piggyback.certificates.local import GradientBound, local_bound
from piggyback.certificates.worst_case import worst_case_bound
from piggyback.certified import Certification, CertifiedGradient
from piggyback.cone import ConeProgram
from piggyback.descent import AdaptiveDescent, DescentSettings, DescentState, StopReason
from piggyback.driven import Control, DrivenDescent
from piggyback.forward import ForwardOperator, Inpainting, SuperResolution, ValidBlur
from piggyback.gradients import Hypergradient, hypergradient
from piggyback.hypergradient.base import Accuracy, DirectMethod, HypergradientMethod, Sensitivity, WarmStart
from piggyback.hypergradient.bda import BDA
from piggyback.hypergradient.bome import BOME
from piggyback.hypergradient.capabilities import Capabilities, Guarantee, Refused
from piggyback.hypergradient.iaptt import IAPTT
from piggyback.hypergradient.implicit import ImplicitCG, ImplicitMINRES, Neumann
from piggyback.hypergradient.lifted import Lifted
from piggyback.hypergradient.one_step import JacobianFree, OneStep
from piggyback.hypergradient.penalty import BVFIM, ValueFunction
from piggyback.hypergradient.piggyback import Piggyback
from piggyback.hypergradient.refinement import Refined
from piggyback.hypergradient.unrolled import Truncated, Unrolled
from piggyback.implicit_call import Report
from piggyback.layer import Reconstruction, reconstruct
from piggyback.losses import Loss, SquaredError
from piggyback.on_demand import Assessment, OnDemand
from piggyback.operators import DenseOperator, LinearOperator
from piggyback.oracle import Evaluation, Oracle
from piggyback.problem import SaddleProblem
from piggyback.rate import RateRace
from piggyback.regularizer import Regularizer
from piggyback.smooth import SmoothProblem
from piggyback.solve import NotConverged, Outcome, Schedule, Status
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.gradient import GradientDescent
from piggyback.solvers.lower import certified_distance, certified_energy, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.pdhg import PDHG
from piggyback.solvers.quasi_newton import QuasiNewton
from piggyback.stochastic import StochasticDescent, StochasticSettings
from piggyback.terms.energies import ModuleEnergy, SmoothEnergy, is_convex_along
from piggyback.terms.least_squares import LeastSquares
from piggyback.terms.masked import MaskedDenoising
from piggyback.terms.potentials import Potential
from piggyback.terms.profiles import Charbonnier, Huber, LogCosh, Profile
from piggyback.terms.quadratic import DataTerm, Deblurring, Denoising, DenseQuadratic
from piggyback.tolerance import GradientQuality, ToleranceRule

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
    "Lifted",
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
    "Piggyback",
    "Potential",
    "Profile",
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
