"""What goes into the layer: refused where no solve could be right, named where
it gets a gradient, watched for changes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from piggyback.forward.adapters import source_of
from piggyback.forward.base import operator_tensors
from piggyback.problems.regularizer import Regularizer
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.least_squares import LeastSquares
from piggyback.types import Primal
from piggyback.values import require_images


def check_call(data: DataTerm | Tensor) -> None:
    """Refuse what nothing can be solved with, before it is looked at.

    Args:
        data: what the layer was called with.

    Raises:
        RuntimeError: in transforms of ``torch.func``.
        ValueError: for what is neither a data term nor a tensor, or has no
            values.
    """
    if peek_interpreter_stack() is not None:
        raise RuntimeError(
            "a Reconstruction cannot be transformed by torch.func (grad, "
            "vmap, jvp): use backward() or torch.autograd.grad, and "
            "a batch in the place of vmap"
        )
    if isinstance(data, Tensor):
        inputs = {"the observation": data}
    elif isinstance(data, DataTerm):
        inputs = data.inputs()
    else:
        raise ValueError(
            "a Reconstruction takes a data term such as Denoising(noisy), or "
            f"the tensor of a noisy batch, got {type(data).__name__}"
        )
    for name, value in inputs.items():
        if value.device.type == "meta":
            raise ValueError(
                f"{name} is on the meta device and has no values: a "
                "Reconstruction cannot solve without them"
            )


def check_inputs(regularizer: Regularizer, data: DataTerm) -> None:
    """Raise ``ValueError`` for data and weights that do not go together, naming
    both, ``RuntimeError`` for tangents."""
    start = data.start
    require_images("the data term", start)
    for name, value in regularizer.named_parameters():
        _check_weight(name, value, start)
    _refuse_tangents(data.inputs() | dict(regularizer.named_parameters()))


def _check_weight(name: str, value: Tensor, start: Primal) -> None:
    if value.device.type == "meta":
        raise ValueError(
            f"{name} of the regularizer is on the meta device and has no values: load some first"
        )
    # indices and masks go with images of any kind
    if not value.is_floating_point():
        return
    if value.dtype != start.dtype or value.device != start.device:
        raise ValueError(
            f"the observation is {start.dtype} on {start.device}, {name} of "
            f"the regularizer {value.dtype} on {value.device}: "
            "convert one of them with .to()"
        )


def _refuse_tangents(tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        if (
            not value.is_inference()
            and forward_ad.unpack_dual(value).tangent is not None
        ):
            raise RuntimeError(
                f"{name} has a tangent, and a Reconstruction no forward-mode "
                "derivative: use backward()"
            )


def live_inputs(data: DataTerm, image: Primal) -> tuple[str, ...]:
    """Names of the inputs of the data term (in float64) that get a gradient;
    ``image``: one that its operator can be tried on.

    Raises ``ValueError`` for a forward operator with weights that require
    gradients and ``A`` without a graph.
    """
    names = [
        name for name, value in data.inputs().items() if value.requires_grad
    ]
    if not isinstance(data, LeastSquares):
        return tuple(names)
    weights = [
        name
        for name, value in operator_tensors(source_of(data.forward)).items()
        if value.requires_grad
    ]
    with torch.enable_grad():
        connected = data.forward.A(image[:1].detach()).requires_grad
    if weights and not connected:
        raise ValueError(
            f"{weights[0]} of the forward operator requires a gradient, but "
            "its A has no graph: freeze it, or make A "
            "differentiable in it"
        )
    if connected and not weights:
        names.append("operator")  # it closes over something
    return tuple(names)


def as_declared(regularizer: Regularizer) -> bool:
    """Whether the parameters are those that ``pull_back`` bounds: none tied,
    none computed from others by a parametrization."""
    modules = list(regularizer.modules())
    names = sum(1 for _ in regularizer.named_parameters(remove_duplicate=False))
    return names == len(list(regularizer.parameters())) and not any(
        map(nn.utils.parametrize.is_parametrized, modules)
    )


def watched(regularizer: Regularizer, data: DataTerm) -> tuple[Tensor, ...]:
    """What ``backward`` must find as it was: weights, buffers and inputs
    (inference tensors do not count their changes)."""
    tensors = [*regularizer.parameters(), *data.inputs().values()]
    return tuple(v for v in tensors if not v.is_inference())
