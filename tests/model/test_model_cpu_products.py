"""Products by oneDNN: those of torch, for every shape and dtype, and only where they are faster."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainer.model import cpu_products
from trainer.model.cpu_products import install, reason_against, restore, use_cpu_products

LARGE = 96
"""Side of matrices that oneDNN multiplies."""
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64)


@pytest.fixture
def installed() -> Iterator[None]:
    before = bool(cpu_products._installed)
    install()
    yield
    (install if before else restore)()


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    return torch.randn(rows, columns, generator=generator).mul(4).to(dtype)


def plain(left: Tensor, right: Tensor) -> Tensor:
    """Without the kernels that are tested."""
    return (left.double().unsqueeze(2) * right.double().unsqueeze(0)).sum(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 7, LARGE])
@pytest.mark.parametrize("bias", ["none", "row", "column", "matrix"])
@pytest.mark.usefixtures("installed")
def test_products_are_those_of_torch(dtype: torch.dtype, rows: int, bias: str) -> None:
    left, right = matrix(rows, LARGE, dtype), matrix(LARGE, 2 * LARGE, dtype)
    product = plain(left, right)
    if bias == "none":
        assert_near(left @ right, product, dtype)
        return
    shape = {"row": (2 * LARGE,), "column": (rows, 1), "matrix": (rows, 2 * LARGE)}[bias]
    added = torch.ones(shape, dtype=dtype)
    assert_near(torch.addmm(added, left, right), added + product, dtype)
    assert_near(torch.addmm(added, left, right, beta=2, alpha=3), 2 * added + 3 * product, dtype)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    assert found.shape == expected.shape
    rtol, atol = (1e-2, 2.0) if dtype == torch.bfloat16 else (1e-5, 1e-3)
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("size", [8, LARGE])
@pytest.mark.usefixtures("installed")
def test_gradients_of_a_linear_map_are_those_of_float64(size: int) -> None:
    texts = matrix(3 * size, size).view(3, size, size).requires_grad_()
    layer = nn.Linear(size, 2 * size)
    wide = nn.Linear(size, 2 * size, dtype=torch.float64)
    wide.load_state_dict(layer.state_dict())
    exact = texts.detach().double().requires_grad_()
    layer(texts).sin().sum().backward()
    wide(exact).sin().sum().backward()
    for found, expected in ((texts, exact), (layer.weight, wide.weight), (layer.bias, wide.bias)):
        assert found.grad is not None
        assert expected.grad is not None
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("installed")
def test_views_and_strides_do_not_matter() -> None:
    left = matrix(2 * LARGE, 3 * LARGE)[::2, LARGE : 2 * LARGE]
    right = matrix(LARGE, 4 * LARGE)[:, ::2]
    for one, other in ((left, right), (right.t(), left.t())):
        torch.testing.assert_close((one @ other).double(), plain(one, other), rtol=1e-5, atol=1e-3)


@pytest.mark.usefixtures("installed")
def test_what_torch_refuses_is_refused_in_its_words() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        matrix(LARGE, LARGE) @ matrix(LARGE + 1, LARGE)
    with pytest.raises(RuntimeError, match="same dtype"):
        matrix(LARGE, LARGE) @ matrix(LARGE, LARGE, torch.float64)


def test_large_products_go_to_onednn_and_small_ones_do_not(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    product = cpu_products._product

    def seen(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append((*left.shape, right.shape[1]))
        return product(left, right, bias)

    monkeypatch.setattr(cpu_products, "_product", seen)
    for size in (8, LARGE):
        _ = matrix(size, size) @ matrix(size, size)
    assert shapes == [(LARGE, LARGE, LARGE)]
    restore()
    _ = matrix(LARGE, LARGE) @ matrix(LARGE, LARGE)
    assert len(shapes) == 1


@pytest.mark.parametrize(
    ("vendor", "capability", "reason"),
    [
        ("AuthenticAMD", "AVX512", None),
        ("AuthenticAMD", "AVX2", "no AVX-512"),
        ("GenuineIntel", "AVX512", "vendor is GenuineIntel"),
        ("", "AVX512", "vendor is unknown"),
        (None, "AVX512", "vendor is unknown"),
    ],
)
def test_onednn_is_taken_where_mkl_leaves_half_of_the_cpu_unused(
    vendor: str | None,
    capability: str,
    reason: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if vendor is not None:
        cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel\t\t: 17\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    found = reason_against("auto", cpuinfo=cpuinfo)
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)
    assert reason_against("none", cpuinfo=cpuinfo) == "the recipe says so"
    monkeypatch.setattr(cpu_products, "OPERATOR", "_no_such_operator")
    assert reason_against("auto", cpuinfo=cpuinfo) == "this torch lacks MKL or oneDNN"
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert reason_against("auto", cpuinfo=cpuinfo) == "this torch lacks MKL or oneDNN"


def test_a_recipe_that_says_none_gets_torchs_own_kernels(
    installed: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", cpu_products.__name__)
    use_cpu_products("none", device_type="cuda")
    assert cpu_products._installed
    use_cpu_products("none", device_type="cpu")
    assert not cpu_products._installed
    monkeypatch.setattr(cpu_products, "reason_against", lambda choice: None)
    use_cpu_products("auto", device_type="cpu")
    assert len(cpu_products._installed) == 1
    use_cpu_products("auto", device_type="cpu")
    assert len(cpu_products._installed) == 1
    assert "float32 products: MKL's, as the recipe says so" in caplog.text
    assert "float32 products: oneDNN's" in caplog.text
