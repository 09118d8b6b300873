"""Choose the library that multiplies fp32 matrices: --matmul."""

import os
from typing import TYPE_CHECKING, Any, Literal

from ftloop.devices.attention import use_eager_attention
from ftloop.devices.matmul_probe import MAX_ERROR_RATIO, fastest_backend, onednn_error_ratio
from ftloop.devices.matmul_settings import Backend, MatmulSettings, set_matmul_backend
from ftloop.errors import UserError
from ftloop.extensions import Setup

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

ONEDNN_CACHE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


class MatmulBackend(Setup):
    """Multiply fp32 matrices with torch's default, with oneDNN (CPUs) or in TF32 (NVIDIA GPUs).

    "auto" keeps a resumed run, or the model of a finished run, on the backend recorded in its
    checkpoints, if this device has it. In a new run it takes the faster of the two fp32 backends on
    a CPU, and the default everywhere else: on other devices and in half precision.
    """

    def __init__(self, backend: Literal["auto", "default", "onednn", "tf32"] = "auto"):
        self.requested = backend
        self.recorded: str | None = None
        self.backend: Backend = "default"
        self._settings: MatmulSettings | None = None  # of torch, before this setup changed them
        self._set_onednn_cache = False

    def resume(self, environment: dict[str, Any]) -> None:
        """Remember the backend with which the run was trained so far."""
        self.recorded = environment.get("matmul_backend")

    def prepare_model(self, model: "torch.nn.Module", accelerator: "Accelerator") -> None:
        """Choose a backend, the same on all ranks, and use it in this process.

        With oneDNN, SDPA is replaced by eager attention. Raises UserError for a backend that this
        device does not have.
        """
        self.backend = self._choose(accelerator)
        if self.backend == "default":
            return
        self._settings = MatmulSettings.current()
        if self.backend == "onednn":
            # oneDNN keeps 1024 compiled kernels, and each new length of a batch needs some more. It
            # reads the variable when it compiles the first one, not when torch is imported.
            self._set_onednn_cache = ONEDNN_CACHE not in os.environ
            os.environ.setdefault(ONEDNN_CACHE, "16384")
            use_eager_attention(model)
        set_matmul_backend(self.backend)

    def environment(self) -> dict[str, Any]:
        """Return the backend, which a checkpoint records."""
        return {"matmul_backend": self.backend}

    def undo(self) -> None:
        """Restore torch's settings. The attention of the model stays eager."""
        if self._settings is not None:
            self._settings.restore()
            self._settings = None
        if self._set_onednn_cache:
            os.environ.pop(ONEDNN_CACHE, None)
            self._set_onednn_cache = False

    def _choose(self, accelerator: "Accelerator") -> Backend:
        """Return the backend for this device and precision. Called on all ranks."""
        device = accelerator.device.type
        is_fp32_on_cpu = device == "cpu" and accelerator.mixed_precision == "no"
        if self.requested == "tf32" and device != "cuda":
            raise UserError(
                f"--matmul tf32 needs an NVIDIA GPU, but the device is {device!r}. Use auto, "
                "default or, on a CPU, onednn."
            )
        if self.requested == "onednn" and not is_fp32_on_cpu:
            raise UserError(
                f"--matmul onednn is for fp32 on a CPU, but the device is {device!r} and the mixed "
                f"precision {accelerator.mixed_precision!r}. Use auto or default."
            )
        if self.requested == "tf32":
            return "tf32"
        if self.requested == "auto" and self.recorded == "tf32" and device == "cuda":
            return "tf32"
        if self.requested == "default" or not is_fp32_on_cpu:
            return "default"
        return self._choose_for_cpu(accelerator)

    def _choose_for_cpu(self, accelerator: "Accelerator") -> Backend:
        """Choose between the default and oneDNN on the main process, for all ranks."""
        from accelerate.utils import broadcast_object_list

        # Only one process measures: several would slow each other down.
        error_ratio, choice = 1.0, None
        if accelerator.is_main_process:
            if self.requested == "onednn" or self.recorded == "onednn":
                error_ratio = onednn_error_ratio()
                choice = "onednn" if error_ratio <= MAX_ERROR_RATIO else "default"
            else:
                choice = "default" if self.recorded == "default" else fastest_backend()
        error_ratio, choice = broadcast_object_list([error_ratio, choice])
        if self.requested == "onednn" and choice != "onednn":
            raise UserError(
                "--matmul onednn does not multiply in fp32 on this CPU: its error is "
                f"{error_ratio:.0f} times that of the default. Use auto or default."
            )
        return choice
