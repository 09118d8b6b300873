"""torch's settings for products of fp32 matrices: choose a backend, save and restore.

By default torch multiplies fp32 matrices with MKL, which takes a slow path on some CPUs. The
precision "medium" hands them to oneDNN instead, and what oneDNN does depends on the CPU: with
AVX-512 the products stay fp32 and are faster, with AMX they are computed in bf16, with AVX2 nothing
changes.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Backend = Literal["default", "onednn", "tf32"]

_PRECISIONS: dict[Backend, str] = {"onednn": "medium", "tf32": "high"}


@dataclass(frozen=True)
class MatmulSettings:
    """A snapshot of the settings. torch keeps them twice, by an older and by a newer interface."""

    precision: str  # of torch.set_float32_matmul_precision, the older interface
    onednn: str  # torch.backends.mkldnn.matmul.fp32_precision
    cuda: str  # torch.backends.cuda.matmul.fp32_precision

    @classmethod
    def current(cls) -> "MatmulSettings":
        """Read the settings of this process."""
        try:
            precision = torch.get_float32_matmul_precision()
        except RuntimeError:  # somebody used the newer interface alone, and the two disagree
            precision = "highest"
        onednn = torch.backends.mkldnn.matmul.fp32_precision
        return cls(precision, onednn, torch.backends.cuda.matmul.fp32_precision)

    def restore(self) -> None:
        """Make these the settings of this process."""
        # The older interface writes the newer settings as well, so they come after it.
        torch.set_float32_matmul_precision(self.precision)
        torch.backends.mkldnn.matmul.fp32_precision = self.onednn
        torch.backends.cuda.matmul.fp32_precision = self.cuda


DEFAULTS = MatmulSettings(precision="highest", onednn="none", cuda="none")


def set_matmul_backend(backend: Backend) -> None:
    """Multiply fp32 matrices with this backend from now on in this process."""
    if backend == "default":
        DEFAULTS.restore()
    else:
        torch.set_float32_matmul_precision(_PRECISIONS[backend])
