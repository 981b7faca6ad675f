"""All hypergradient methods, in the order of tables."""

from __future__ import annotations

from piggyback.hypergradients.base import DirectMethod, HypergradientMethod
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
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.hypergradients.refinement import Refined

METHODS: tuple[type[HypergradientMethod] | type[DirectMethod], ...] = (
    # certified ones first, then those of the literature
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
"""Every class declares its ``capabilities``; docs/methods.md is generated from
them."""
