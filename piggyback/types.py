"""Shape vocabulary. Every array is a ``torch.Tensor``; the names say what its
axes are.

``Primal``     ``(batch, *signal)``               images ``(batch, channels, height, width)`` or vectors ``(batch, n)``
``Dual``       ``(batch, *sites, coefficients)``  coefficients last: ``(batch, height, width, filters)``, ``(batch, m)``
``PerSample``  ``(batch,)``                       one number per image
``PerFilter``  ``(coefficients,)``                broadcasts against the last axis of a ``Dual``
``Scalar``     ``()``
"""

from torch import Tensor

Primal = Tensor
Dual = Tensor
PerSample = Tensor
PerFilter = Tensor
Scalar = Tensor
