"""Measure whether oneDNN multiplies fp32 matrices faster than torch's default on this CPU.

The answer is remembered in the user's cache folder, so that two equal runs use the same backend and
give the same bits. Timings of a busy machine are not remembered.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ftloop.devices.matmul_settings import Backend, MatmulSettings, set_matmul_backend
from ftloop.files import write_text

logger = logging.getLogger("ftloop")

ROWS, WIDTH, HIDDEN = 128, 384, 1536  # a feed-forward layer of MiniLM
MAX_SECONDS, MAX_ROUNDS = 0.2, 50  # of the timings
MIN_SPEEDUP = 1.1  # below it the default stays, with which SDPA can be used (attention.py)
MARGIN = 0.1  # a speedup this near to MIN_SPEEDUP may fall on the other side when measured again
# oneDNN sums in another order than MKL, with up to twice its error. TF32 has 500 times, bf16 5000.
MAX_ERROR_RATIO = 4.0
MIN_ROUNDS, MAX_SPREAD = 5, 1.25  # of timings on an idle machine, whose spread is 1.03 to 1.1
MAX_AGE_DAYS = 30

Products = list[torch.Tensor]


@dataclass(frozen=True)
class Measurement:
    """How oneDNN multiplies fp32 matrices on this CPU, compared with torch's default."""

    speedup: float  # time of the default / time of oneDNN
    error_ratio: float  # error of oneDNN / error of the default
    is_busy: bool = False  # other programs used the CPU meanwhile
    measured_at: float = 0.0  # seconds since 1970

    @property
    def is_fp32(self) -> bool:
        """Whether the products of oneDNN are as precise as fp32 products are."""
        return self.error_ratio <= MAX_ERROR_RATIO

    @property
    def backend(self) -> Backend:
        """The faster of the backends whose products are fp32."""
        min_speedup = MIN_SPEEDUP + MARGIN if self.is_busy else MIN_SPEEDUP
        return "onednn" if self.is_fp32 and self.speedup > min_speedup else "default"

    @property
    def is_close(self) -> bool:
        """Whether another measurement may well choose the other backend."""
        return self.is_fp32 and abs(self.speedup - MIN_SPEEDUP) < MARGIN

    @property
    def is_old(self) -> bool:
        return abs(time.time() - self.measured_at) > MAX_AGE_DAYS * 24 * 3600

    def __str__(self) -> str:
        if not self.is_fp32:
            return (
                f"oneDNN is not fp32 on this CPU: {self.error_ratio:.0f} times the default's error"
            )
        if self.speedup == self.error_ratio == 1:
            return "oneDNN multiplies as the default does on this CPU"
        return (
            f"oneDNN has {self.speedup:.2f} times the speed and {self.error_ratio:.1f} times the "
            "error of the default"
        )


def fastest_backend() -> Backend:
    """Choose the faster fp32 backend of this CPU, from the cache if a clear answer is there.

    A new measurement replaces a remembered one only if it is clear: not close to the threshold, and
    made on an idle machine. Otherwise equal runs would alternate between the backends.
    """
    cached = read_cache()
    if cached is not None and not cached.is_old and not cached.is_close:
        return _log_choice(cached, f"remembered in {cache_file()}")
    measured = measure()
    if cached is not None and (measured.is_close or measured.is_busy):
        return _log_choice(cached, f"remembered in {cache_file()}")
    if measured.is_busy:
        return _log_choice(measured, "not remembered, because the machine is busy")
    write_cache(measured)
    return _log_choice(measured, "measured now")


def _log_choice(measurement: Measurement, source: str) -> Backend:
    logger.info("matmul backend: %s; %s (%s)", measurement.backend, measurement, source)
    return measurement.backend


def onednn_error_ratio() -> float:
    """Return the error of oneDNN's products, that of the default being 1."""
    factors = _factors()
    with _restored_settings(), torch.no_grad():
        default, onednn = (_multiply(backend, factors) for backend in ("default", "onednn"))
    if all(torch.equal(one, other) for one, other in zip(default, onednn, strict=True)):
        return 1.0
    return relative_error(onednn, factors) / relative_error(default, factors)


def measure() -> Measurement:
    """Compare the backends on the products of a linear layer, forward and backward, in 0.25 s.

    torch's settings and its random generator stay as they are. Nothing is timed if oneDNN is not
    fp32 or gives the same bits as the default, since the speed does not matter then.
    """
    load_is_high = is_load_high()
    error_ratio = onednn_error_ratio()  # which also prepares the kernels of both backends
    if error_ratio == 1 or error_ratio > MAX_ERROR_RATIO:
        return Measurement(speedup=1.0, error_ratio=error_ratio, measured_at=time.time())
    factors = _factors()
    with _restored_settings(), torch.no_grad():
        default_times, onednn_times = _time_in_turns(
            lambda: _multiply("default", factors), lambda: _multiply("onednn", factors)
        )
    return Measurement(
        # Other programs only add to a time, so the minimum is the best estimate.
        speedup=min(default_times) / min(onednn_times),
        error_ratio=error_ratio,
        is_busy=load_is_high or is_disturbed(default_times),
        measured_at=time.time(),
    )


def _time_in_turns(
    first: Callable[[], object], second: Callable[[], object]
) -> tuple[list[float], list[float]]:
    """Call two functions in turns, and return the seconds of each call of each."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + MAX_SECONDS
    while len(times[1]) < MAX_ROUNDS and (len(times[1]) < 2 or time.perf_counter() < end):
        for function, seconds in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return times


def is_disturbed(times: list[float]) -> bool:
    """Tell from the times of equal work whether other programs used the CPU meanwhile."""
    return len(times) < MIN_ROUNDS or statistics.median(times) > MAX_SPREAD * min(times)


def is_load_high() -> bool:
    """Tell whether the machine had more work than processors during the last minute."""
    try:
        return os.getloadavg()[0] > (os.cpu_count() or 1)
    except OSError:  # this system does not tell
        return False


def relative_error(products: Products, factors: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the largest relative error of some products, over their first 16 rows."""
    errors = []
    for product, (left, right) in zip(products, factors, strict=True):
        exact = left[:16].double() @ right.double()
        errors.append(float((product[:16] - exact).norm() / exact.norm()))
    return max(errors)


def _factors() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the factors of three products: outputs, gradients of inputs, of the weight."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, WIDTH, generator=generator)
    weight = torch.randn(HIDDEN, WIDTH, generator=generator)
    gradient = torch.randn(ROWS, HIDDEN, generator=generator)
    return [(inputs, weight.T), (gradient, weight), (gradient.T, inputs)]


def _multiply(backend: Backend, factors: list[tuple[torch.Tensor, torch.Tensor]]) -> Products:
    set_matmul_backend(backend)
    return [left @ right for left, right in factors]


@contextlib.contextmanager
def _restored_settings() -> Iterator[None]:
    """Restore torch's matmul settings after the block."""
    settings = MatmulSettings.current()
    try:
        yield
    finally:
        settings.restore()


def cache_file() -> Path:
    """Return the file that remembers the measurement of this CPU, torch version and thread count.

    Machines with different CPUs may share a home folder, so the CPU is part of the file name.
    """
    key = repr((describe_cpu(), torch.__version__, torch.get_num_threads()))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftloop"
    return folder / f"matmul-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def describe_cpu() -> str:
    """Return the name and the features of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))


def read_cache() -> Measurement | None:
    """Return the remembered measurement; None if there is none, or the file is not readable."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        cached = Measurement(**json.loads(cache_file().read_text()))
        if math.isfinite(cached.speedup + cached.error_ratio + cached.measured_at):
            return cached
    return None


def write_cache(measurement: Measurement) -> None:
    """Remember a measurement, atomically. A folder that cannot be written is not an error."""
    file = cache_file()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asdict(measurement)))
