"""Which setups of a finished run also apply to evaluation and prediction."""

from collections.abc import Sequence

from ftloop.devices.compile import Compile
from ftloop.devices.deterministic import Deterministic
from ftloop.devices.environment import RecordEnvironment
from ftloop.devices.gradient_checkpointing import GradientCheckpointing
from ftloop.devices.matmul import MatmulBackend
from ftloop.devices.micro_batch_size import AutoMicroBatchSize
from ftloop.extensions import Setup

TRAINING_ONLY = (
    AutoMicroBatchSize,
    Compile,
    Deterministic,
    GradientCheckpointing,
    RecordEnvironment,
)


def inference_setups(setups: Sequence[Setup]) -> list[Setup]:
    """Return the setups with which a finished run should be evaluated, from those of its training.

    The backend recorded in its checkpoints is used where this machine has it: a model that was
    trained in TF32 on a GPU can be evaluated on a CPU.
    """
    chosen = []
    for setup in setups:
        if isinstance(setup, MatmulBackend):
            chosen.append(MatmulBackend("auto"))
        elif not isinstance(setup, TRAINING_ONLY):
            chosen.append(setup)
    return chosen
