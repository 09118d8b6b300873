"""Use algorithms whose result does not depend on timing: --deterministic."""

import os
from typing import TYPE_CHECKING

import torch

from ftloop.extensions import Setup

if TYPE_CHECKING:
    from accelerate import Accelerator

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


class Deterministic(Setup):
    """Call `torch.use_deterministic_algorithms`, so that a GPU gives the same bits twice.

    Some operations sum in an order that depends on timing; they are replaced by slower ones, and
    torch raises an error for those that cannot be. cuBLAS reads its workspace setting when it
    multiplies the first matrix of a process, so an earlier run in the same process makes this setup
    incomplete.
    """

    def __init__(self) -> None:
        self._previous_mode: int | None = None
        self._set_workspace = False

    def prepare_model(self, model: torch.nn.Module, accelerator: "Accelerator") -> None:
        """Turn it on for this process, before the model computes anything."""
        self._set_workspace = CUBLAS_WORKSPACE not in os.environ
        os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
        self._previous_mode = torch.get_deterministic_debug_mode()
        torch.use_deterministic_algorithms(True)  # also turns off the benchmarks of cuDNN

    def undo(self) -> None:
        """Restore torch's previous mode and the environment variable."""
        if self._previous_mode is not None:
            torch.set_deterministic_debug_mode(self._previous_mode)
            self._previous_mode = None
        if self._set_workspace:
            os.environ.pop(CUBLAS_WORKSPACE, None)
            self._set_workspace = False
