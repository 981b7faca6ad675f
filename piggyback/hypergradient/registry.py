"""All hypergradient methods, in the order of tables."""

from __future__ import annotations

from piggyback.hypergradient.base import DirectMethod, HypergradientMethod
from piggyback.hypergradient.bda import BDA
from piggyback.hypergradient.bome import BOME
from piggyback.hypergradient.iaptt import IAPTT
from piggyback.hypergradient.implicit import ImplicitCG, ImplicitMINRES, Neumann
from piggyback.hypergradient.one_step import JacobianFree, OneStep
from piggyback.hypergradient.penalty import BVFIM, ValueFunction
from piggyback.hypergradient.piggyback import Piggyback
from piggyback.hypergradient.refinement import Refined
from piggyback.hypergradient.unrolled import Truncated, Unrolled

METHODS: tuple[type[HypergradientMethod] | type[DirectMethod], ...] = (
    Piggyback,
    ImplicitCG,
    ImplicitMINRES,
    Neumann,
    Refined,
    Unrolled,
    Truncated,
    OneStep,
    JacobianFree,
    ValueFunction,
    BOME,
    BVFIM,
    BDA,
    IAPTT,
)
"""Every class declares its ``capabilities``; docs/methods.md is generated from them."""
