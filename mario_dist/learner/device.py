"""Which device and which precision."""

import contextlib

import torch


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA, then MPS, then the CPU. Raises ``ValueError`` where the named one is missing."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise ValueError(f"this machine has no {name} device; use learner.device=auto")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast where asked for, or where ``auto`` finds that the device gains from it."""
    if precision == "auto":
        precision = "bfloat16" if _gains(device) else "float32"
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _gains(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself: a CPU without AVX512-BF16 or AMX would imitate it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        can = torch.cpu.get_capabilities()
        return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return False
