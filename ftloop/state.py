"""The position of a run, and randomness as a function of seeds and counters.

Nothing random has a state that would have to be saved. The order of an epoch, the dropout of a
micro-batch and the random choices of a row are functions of (seed, counters); see `fold_in`.
"""

import contextlib
import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy
import torch

from ftloop.errors import UserError


@dataclass
class TrainState:
    """Everything a checkpoint holds besides tensors. The position of a run is `step`."""

    seed: int = 0
    step: int = 0  # optimizer steps done
    scores: dict[str, float] | None = None  # of the last evaluation on validation
    last_eval_step: int = 0  # the step of that evaluation
    best_step: int | None = None
    best_scores: dict[str, float] | None = None  # on validation, at best_step
    evaluations_since_best: int = 0  # early stopping compares it with `patience`
    micro_batch_size: int | None = None  # rows per forward pass on each rank
    max_tokens: int | None = None  # padded tokens per forward pass on each rank
    # By split, a digest of its rows: a run resumes on the same rows only
    fingerprints: dict[str, str] = field(default_factory=dict)
    log_bytes: int = 0  # length of metrics.jsonl at this step; later lines are cut off on resume
    log_checksum: int = 0  # crc32 of these bytes

    def update_best(self, scores: dict[str, float], metric: str, direction: str) -> None:
        """Record validation scores and update the best step. Of equal ones, the first is best."""
        if metric not in scores:
            message = f"{metric!r} was not computed. The scores are {', '.join(scores)}."
            raise UserError(message, field="best_metric")
        self.scores, self.last_eval_step = scores, self.step
        value, best = scores[metric], (self.best_scores or {}).get(metric, math.nan)
        self.evaluations_since_best += 1
        # Any number is better than NaN.
        if math.isnan(best) or (value > best if direction == "max" else value < best):
            self.best_scores, self.best_step, self.evaluations_since_best = scores, self.step, 0


def fold_in(seed: int, *counters: int | str) -> int:
    """Derive a 63-bit seed from a seed and counters: `fold_in(seed, "order", epoch)`.

    Similar counters give unrelated seeds. The name is that of `jax.random.fold_in`.
    """
    digest = hashlib.blake2b(repr((seed, *counters)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def set_seed(seed: int) -> None:
    """Seed torch on every device, `random` and numpy."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


@contextlib.contextmanager
def temporary_seed(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, `random` and numpy within the block; restore their states after
    it.

    GPUs are left alone: without data workers this runs between the forward passes of the training
    process, and the state of the GPU belongs to dropout.
    """
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        numpy.random.set_state(states[2])
