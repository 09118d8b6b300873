"""What a CPU computes with: matrix products by the quicker of two libraries, memory that is kept from step to step, and
dropout with cheaper draws; and on a GPU, masks that nobody waits for.

torch multiplies fp32 matrices with MKL, which takes a slow path on some chips. Its setting "medium" hands them to
oneDNN instead. What that does depends on the chip: with AVX-512, the products stay fp32 (1.66 x the speed on MiniLM);
with AMX, they fall to bf16; with AVX2 alone, nothing changes. So both are tried when a run starts, for speed and error.
"""

import contextlib
import ctypes
import hashlib
import json
import logging
import math
import os
import platform
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.utils import broadcast_object_list

from ftloop.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from accelerate import Accelerator
    from transformers import PreTrainedModel

logger = logging.getLogger("ftloop")

Matmul = Literal["default", "onednn"]

ROWS, WIDTH, INNER = 128, 384, 1536  # of the products tried: a feed-forward layer of MiniLM
SECONDS = 0.2  # for all the rounds of the probe
WORTH = 1.1  # times the speed; below that, the default stays, whose attention is quicker too
# oneDNN sums in another order than MKL, and errs up to twice as much; TF32 some 500 times, bf16 some 5 000 times.
FP32 = 4.0


@dataclass(frozen=True)
class Choice:
    """What products are computed with, and why."""

    matmul: Matmul
    speed: float  # of oneDNN, the default's being 1
    error: float  # of oneDNN, the default's being 1

    def __str__(self) -> str:
        if self.speed == self.error == 1:
            return f"{self.matmul} (onednn multiplies as the default does on this chip)"
        return f"{self.matmul} (onednn: {self.speed:.2f} x the speed, {self.error:.1f} x the error of the default)"


def choose(asked: Literal["auto", "default", "onednn"], recorded: str | None = None) -> Matmul:
    """What this run computes with, for `use`. All processes call it; the main one's answer counts.

    `asked`: --matmul; `recorded`: what the run used before it was interrupted, which "auto" keeps to whatever a probe
    would say now, as long as it is fp32. Raises UserError for oneDNN if asked for where its products are not.
    """
    if asked == "default" or (asked == "auto" and recorded == "default"):
        return "default"
    if asked == "auto" and recorded is None:
        return remembered()
    choice = probe()
    if asked == "onednn" and choice.error > FP32:
        raise UserError(
            f"--matmul onednn: its products are not fp32 on this machine ({choice.error:.0f} times the error); "
            "the choices are auto and default"
        )
    return "onednn" if choice.error <= FP32 else "default"


def remembered() -> Matmul:
    """What a probe on this machine found, now or before: a busy moment must not give one of two equal runs other bits.

    Kept in the user's cache, which machines may share: by chip (what it can do is the point: with AMX, oneDNN is not
    fp32), torch and number of threads. Where that cannot be written, each run probes.
    """
    decides = chip(), torch.__version__, torch.get_num_threads()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftloop"
    file = folder / f"matmul-{hashlib.sha256(repr(decides).encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = Choice(**json.loads(file.read_text()))
        logger.info("matmul: %s, as found before on this machine (%s)", found, file)
        return found.matmul
    found = probe()
    logger.info("matmul: %s", found)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(asdict(found)))
        aside.rename(file)
    return found.matmul


def chip() -> str:
    """The name of the processor, and all that it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        return platform.processor()
    told = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))


def settle(asked: str, recorded: str | None, accelerator: "Accelerator") -> str:
    """Use what --matmul asks for, the same in all processes, and return its name. Raises UserError for what this device
    has not; on a GPU, and in half precision, "auto" is the default."""
    fp32_on_cpu = accelerator.device.type == "cpu" and accelerator.mixed_precision == "no"
    if asked == "tf32":
        if accelerator.device.type != "cuda":
            raise UserError("--matmul tf32: for GPUs only; on a CPU, the choices are auto, default and onednn")
        torch.set_float32_matmul_precision("high")
        return asked
    if asked == "onednn" and not fp32_on_cpu:
        raise UserError("--matmul onednn: for fp32 on a CPU only; the choices are auto, default and, on GPUs, tf32")
    chosen = broadcast_object_list([choose(asked, recorded)])[0] if fp32_on_cpu else "default"
    use(chosen)
    return chosen


def adapt(model: "PreTrainedModel", matmul: str, cheaper: bool = False, compiled: bool = False) -> None:
    """Make a model compute with what was settled; `cheaper`: --cheaper-dropout, `compiled`: --compile."""
    choose_attention(model, matmul)
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not on_cpu:
        always_mask()
    if cheaper and not on_cpu:
        logger.warning("--cheaper-dropout has no effect here: it is for CPUs")
    choose_dropout(cheaper and on_cpu)
    if compiled:
        if on_cpu:
            logger.warning("--compile on a CPU: a step took 1.2 times as long (MiniLM), and compiling 84 seconds")
        compile_in_place(model)


def compile_in_place(model: torch.nn.Module) -> None:
    """torch.compile for a model that keeps its names: `torch.compile(model)` would put "_orig_mod." before them."""
    import torch._dynamo

    # A shape is a number of rows (the last batch has fewer), a length, and training or not; torch gives up after 8.
    torch._dynamo.config.recompile_limit = 64
    model.compile(dynamic=False)


def probe() -> Choice:
    """Try the three products of a linear layer, forward and backward, with both libraries in turn. Leaves the settings
    and the random generator of torch as they are."""
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    rows, weight, gradient = (
        torch.randn(shape, generator=generator) for shape in ((ROWS, WIDTH), (INNER, WIDTH), (ROWS, INNER))
    )
    factors = (rows, weight.T), (gradient, weight), (gradient.T, rows)

    def products(matmul: Matmul) -> list[torch.Tensor]:
        use(matmul)
        return [left @ right for left, right in factors]

    with torch.no_grad(), restored():
        default, onednn = products("default"), products("onednn")  # both have their kernels ready from here on
        if all(map(torch.equal, default, onednn)):  # this chip knows one way only
            return Choice("default", 1.0, 1.0)
        error = error_of(onednn, factors) / error_of(default, factors)
        default_seconds = onednn_seconds = math.inf
        for rounds in range(1, 20):
            # The least, not the mean: what other programs take only adds.
            default_seconds = min(default_seconds, seconds_of(products, "default"))
            onednn_seconds = min(onednn_seconds, seconds_of(products, "onednn"))
            if rounds > 1 and time.perf_counter() - began > SECONDS:
                break
    speed = default_seconds / onednn_seconds
    matmul: Matmul = "onednn" if speed > WORTH and error <= FP32 else "default"
    return Choice(matmul, speed, error)


def error_of(products: list[torch.Tensor], factors: tuple[tuple[torch.Tensor, torch.Tensor], ...]) -> float:
    """The largest relative error of some fp32 products, from float64. A few rows tell fp32 from less."""
    errors = []
    for product, (left, right) in zip(products, factors, strict=True):
        exact = left[:16].double() @ right.double()
        errors.append(float((product[:16] - exact).norm() / exact.norm()))
    return max(errors)


def seconds_of(products: "Callable[[Matmul], Any]", matmul: Matmul) -> float:
    start = time.perf_counter()
    products(matmul)
    return time.perf_counter() - start


def use(matmul: Matmul) -> None:
    """Compute fp32 products with it from now on, in this process. "default" takes back what "onednn" and "tf32" did,
    and does nothing before them."""
    if matmul == "onednn":
        # oneDNN keeps the kernels that it made, for 1 024 shapes, and each new length of a batch brings some. It reads
        # this when it makes the first one, not when torch is imported.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
        torch.set_float32_matmul_precision("medium")
    elif settings()[0] in ("bf16", "tf32"):
        torch.set_float32_matmul_precision("highest")
        set_back(("none", "none"))


def settings() -> tuple[str, str]:
    """How fp32 products are computed by oneDNN, and on GPUs: "none" if nothing was said."""
    return torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision


def in_use() -> str:
    """What this process computes fp32 products with: as settled before, else torch's default."""
    return {"bf16": "onednn", "tf32": "tf32"}.get(settings()[0], "default")


def set_back(before: tuple[str, str]) -> None:
    torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


@contextmanager
def restored() -> "Iterator[None]":
    """The settings are behind it what they are before it."""
    before = settings()
    try:
        yield
    finally:
        # By the older name as well: torch refuses to tell it if the two disagree.
        torch.set_float32_matmul_precision({"bf16": "medium", "tf32": "high"}.get(before[0], "highest"))
        set_back(before)


def choose_attention(model: "PreTrainedModel", matmul: str) -> None:
    """Plain ("eager") attention with oneDNN, in place of SDPA: the same logits to rounding, and the same dropout.

    SDPA's own kernel for CPUs makes many small products, each of which oneDNN is slow to begin (3.6 x the time). It
    computes without dropout only; with it, SDPA is plain attention as well. What it costs is memory: rows x heads x
    longest^2 numbers in a layer. An exported model does not remember it; one that computes packed, or by any other
    kind of attention, is left as it is.
    """
    if matmul == "onednn" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")


def always_mask() -> None:
    """Let SDPA get a mask wherever a batch has one. transformers leaves out those that hide nothing; to know, it waits
    for the GPU in each forward pass."""
    from transformers import AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def mask(*arguments: Any, **options: Any) -> Any:
        if options.get("attention_mask") is not None:
            options |= {"allow_is_bidirectional_skip": False, "allow_is_causal_skip": False}
        return sdpa_mask(*arguments, **options)

    for kind in ("sdpa", "ftloop_packed"):  # of ftloop/tasks/packing.py
        AttentionMaskInterface.register(kind, mask)


MMAP_MAX, TRIM_THRESHOLD = -4, -1  # of glibc's malloc.h


def keep_memory(device: torch.device) -> bool:
    """Let a process on a CPU keep what it frees, for its next step; whether it does.

    glibc hands large blocks back to the system (mallopt(3)), which clears each of their pages when they are asked for
    again, a step later: of texts of 230 tokens, a third of the time of a step. It costs memory, for what was freed does
    not always fit: at the peak little more, where lengths differ much (to 512 tokens) half more. Not on GPUs, and not
    where there is no glibc.
    """
    libc = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    return hasattr(libc, "mallopt") and bool(libc.mallopt(MMAP_MAX, 0) and libc.mallopt(TRIM_THRESHOLD, -1))


torchs_dropout, torchs_attention = torch.nn.functional.dropout, torch.nn.functional.scaled_dot_product_attention


def cheap_dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """torch.nn.functional.dropout that draws 16 random bits a number, not a float (on a CPU; elsewhere it is torch's).

    `p` is rounded to a 65 536th, and what is kept is scaled by that, so that the expectation stays exact. The draws
    come from torch's global generator, one after another: the same for any number of threads, others than torch's.
    """
    dropped = round(p * 2**16)
    if not training or inplace or input.device.type != "cpu" or not 0 < dropped < 2**16:
        return torchs_dropout(input, p, training, inplace)
    # 64 bits at once: the generator takes its time by the call, not by the bit.
    bits = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = bits[: input.numel()].view(input.shape) >= dropped - 2**15
    return input * kept.to(input.dtype).mul_(2**16 / (2**16 - dropped))


def cheap_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **options: Any,
) -> torch.Tensor:
    """torch.nn.functional.scaled_dot_product_attention with `cheap_dropout`, where it drops: it is plain there too. A
    causal one is torch's."""
    if dropout_p == 0 or query.device.type != "cpu" or is_causal or options.get("enable_gqa"):
        return torchs_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options)
    weights = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        weights = weights.masked_fill(~attn_mask, torch.finfo(weights.dtype).min)
    elif attn_mask is not None:
        weights = weights + attn_mask
    return cheap_dropout(weights.softmax(dim=-1), dropout_p).to(value.dtype) @ value


def choose_dropout(cheaper: bool) -> None:
    """Draw dropout cheaply from now on in this process, or as torch does: modules and models ask for these functions by
    their names."""
    torch.nn.functional.dropout = cheap_dropout if cheaper else torchs_dropout
    torch.nn.functional.scaled_dot_product_attention = cheap_attention if cheaper else torchs_attention
