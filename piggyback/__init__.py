"""Certified bilevel learning of convex regularizers: saddle problems, hypergradients, certificates, descent."""

from piggyback.bilevel import BilevelOracle, BilevelSettings, Samples
from piggyback.certificates.corrected_loss import LossInterval, corrected_loss, plain_loss
from piggyback.certificates.local import GradientBound, local_bound
from piggyback.certificates.worst_case import worst_case_bound
from piggyback.certified import Certification, CertifiedGradient
from piggyback.cone import ConeProgram
from piggyback.descent import AdaptiveDescent, DescentSettings, DescentState, StopReason
from piggyback.hypergradient.base import Accuracy, HypergradientMethod, Sensitivity, WarmStart
from piggyback.hypergradient.implicit import ImplicitCG
from piggyback.hypergradient.piggyback import Piggyback
from piggyback.hypergradient.refinement import Refined
from piggyback.layer import Reconstruction, Report, reconstruct
from piggyback.losses import Loss, SquaredError
from piggyback.on_demand import Assessment, OnDemand
from piggyback.operators import DenseOperator, LinearOperator
from piggyback.oracle import Evaluation, Oracle
from piggyback.problem import SaddleProblem
from piggyback.regularizer import Regularizer
from piggyback.smooth import SmoothProblem
from piggyback.solve import Outcome, Schedule, Status
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.lower import certified_distance, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.pdhg import PDHG
from piggyback.solvers.quasi_newton import QuasiNewton
from piggyback.terms.energies import ModuleEnergy, SmoothEnergy, is_convex_along
from piggyback.terms.potentials import Potential
from piggyback.terms.profiles import Charbonnier, Huber, LogCosh, Profile
from piggyback.terms.quadratic import DataTerm, Deblurring, Denoising, DenseQuadratic

__all__ = [
    "PDHG",
    "AcceleratedGradient",
    "Accuracy",
    "AdaptiveDescent",
    "Assessment",
    "BilevelOracle",
    "BilevelSettings",
    "Certification",
    "CertifiedGradient",
    "Charbonnier",
    "ConeProgram",
    "DataTerm",
    "Deblurring",
    "Denoising",
    "DenseOperator",
    "DenseQuadratic",
    "DescentSettings",
    "DescentState",
    "Evaluation",
    "GradientBound",
    "Huber",
    "HypergradientMethod",
    "ImplicitCG",
    "LinearOperator",
    "LogCosh",
    "Loss",
    "LossInterval",
    "ModuleEnergy",
    "NonlinearCG",
    "OnDemand",
    "Oracle",
    "Outcome",
    "Piggyback",
    "Potential",
    "Profile",
    "QuasiNewton",
    "Reconstruction",
    "Refined",
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
    "StopReason",
    "WarmStart",
    "certified_distance",
    "corrected_loss",
    "is_convex_along",
    "local_bound",
    "plain_loss",
    "reconstruct",
    "solve_lower",
    "worst_case_bound",
]
