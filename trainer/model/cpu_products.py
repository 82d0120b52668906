"""Float32 matrix products by oneDNN on CPUs of which MKL uses half.

MKL runs AVX2 code on every processor that is not Intel's; oneDNN, which torch ships too, has
AVX-512 code for all of them. On an AMD processor with 512-bit units its products take less than
half of the time (`tools/bench/products.py`). The mathematics is the same, float32 throughout; sums
are added up in another order.

torch asks oneDNN for float32 convolutions but not for products, and has no switch for it, so the
CPU kernels of `mm` and `addmm` are replaced. It must not change what they compute, nor any other
dtype or device.
"""

import logging
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.library import Library

from trainer.recipe.schema import Kernels

logger = logging.getLogger(__name__)

SMALLEST = 2**18
"""Multiplications from which oneDNN is worth the call."""
OPERATOR = "_linear_pointwise"
"""Private to torch, whose release is pinned; where it is missing, products stay with MKL."""
CPUINFO = Path("/proc/cpuinfo")
INTEL = "GenuineIntel"

_installed: list[Library] = []
"""Holds the registration; without it the kernels would be torch's again."""


def use_cpu_products(choice: Kernels, *, device_type: str) -> None:
    """Give products to oneDNN for the rest of this process, where that is faster; the log says so.

    Args:
        choice: `engine.kernels`; `none` gives them back to MKL.
        device_type: `cuda` or `cpu`.
    """
    if device_type != "cpu":
        return
    against = reason_against(choice)
    if against is not None:
        restore()
        logger.info("float32 products: MKL's, as %s", against)
    else:
        install()
        logger.info("float32 products: oneDNN's, as MKL does not use AVX-512 on this CPU")


def reason_against(choice: Kernels, *, cpuinfo: Path = CPUINFO) -> str | None:
    """Why products stay with torch's choice, in words; None where oneDNN makes them.

    Args:
        choice: `engine.kernels`.
        cpuinfo: of Linux.
    """
    if choice == "none":
        return "the recipe says so"
    has_onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, OPERATOR)
    if not (torch.backends.mkl.is_available() and has_onednn):
        return "this torch lacks MKL or oneDNN"
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "this CPU has no AVX-512"
    vendor = vendor_of(cpuinfo)
    return f"the CPU's vendor is {vendor}" if vendor in (INTEL, "unknown") else None


def vendor_of(cpuinfo: Path) -> str:
    """The processor's `vendor_id`, such as `AuthenticAMD`; `unknown` where it is not told."""
    try:
        found = re.search(r"^vendor_id[ \t]*:[ \t]*(\S+)", cpuinfo.read_text("utf-8"), re.MULTILINE)
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"


def install() -> None:
    """Replace torch's kernels of `mm` and `addmm` on the CPU; nothing where that was done."""
    if _installed:
        return
    library = Library("aten", "IMPL")
    with warnings.catch_warnings():
        # that kernels are replaced is what is wanted
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        library.impl("mm", mm, "CPU")
        library.impl("addmm", addmm, "CPU")
    _installed.append(library)


def restore() -> None:
    """Put torch's own kernels back."""
    while _installed:
        _installed.pop()._destroy()


def mm(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` of matrices, `(rows, inner)` and `(inner, columns)`; as `torch.mm`."""
    if _is_for_onednn(left, right):
        return _product(left, right, None)
    return torch.mm(left, right, out=left.new_empty(0))


def addmm(
    bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """`beta * bias + alpha * (left @ right)`; as `torch.addmm`."""
    is_row = bias.dtype == torch.float32 and bias.shape == right.shape[1:]
    if is_row and beta == 1 and alpha == 1 and _is_for_onednn(left, right):
        return _product(left, right, bias)
    return torch.addmm(bias, left, right, beta=beta, alpha=alpha, out=left.new_empty(0))


def _is_for_onednn(left: Tensor, right: Tensor) -> bool:
    """Whether both are float32 matrices that fit each other, and large enough."""
    return (
        left.dtype == right.dtype == torch.float32
        and left.dim() == right.dim() == 2
        and left.shape[1] == right.shape[0]
        and left.shape[0] * right.numel() >= SMALLEST
    )


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """By the operator that torch's compiler uses for a linear map, whose weight lies transposed."""
    linear = getattr(torch.ops.mkldnn, OPERATOR)
    product: Tensor = linear(left, right.t(), bias, "none", [], "")
    return product
