"""For users of scikit-image: arrays in, arrays out.

Needs the extra ``app``, and is not imported with the package.
"""

from piggyback.imaging.functions import deconvolve_learned, denoise_learned

__all__ = ["deconvolve_learned", "denoise_learned"]
