import pytest
import torch

from mario_dist.learner.device import autocast, choose_device


def machine(
    monkeypatch: pytest.MonkeyPatch, cuda: bool = False, mps: bool = False, bf16: bool = True
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_fastest(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, cuda, mps)
    assert choose_device("auto") == torch.device(expected)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_missing_device_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    with pytest.raises(ValueError, match=rf"no {name} device.*learner\.device=auto"):
        choose_device(name)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_named_device_that_is_there_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=True, mps=True)
    assert choose_device(name) == torch.device(name)
    assert choose_device("cpu") == torch.device("cpu")


def product_dtype(device: torch.device, precision: str) -> torch.dtype:
    with autocast(device, precision):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_precision_on_the_cpu() -> None:
    cpu = torch.device("cpu")
    assert product_dtype(cpu, "float32") == torch.float32
    assert product_dtype(cpu, "bfloat16") == torch.bfloat16


@pytest.mark.parametrize(
    ("can", "expected"),
    [
        ({"avx512_f": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
    ],
)
def test_auto_is_bfloat16_on_cpus_that_have_it(
    can: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert product_dtype(torch.device("cpu"), "auto") == expected


def test_auto_is_float32_on_the_cpu_of_a_pytorch_that_cannot_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert product_dtype(torch.device("cpu"), "auto") == torch.float32


@pytest.mark.parametrize(("bf16", "expected"), [(True, True), (False, False)])
def test_auto_is_bfloat16_on_gpus_that_have_it(
    bf16: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, cuda=True, bf16=bf16)
    asked: list[tuple[str, torch.dtype]] = []
    monkeypatch.setattr(torch, "autocast", lambda device, dtype: asked.append((device, dtype)))
    autocast(torch.device("cuda"), "auto")
    assert asked == ([("cuda", torch.bfloat16)] if expected else [])
