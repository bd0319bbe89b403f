"""Which arithmetic the decoder runs in."""

from __future__ import annotations

import torch


def uses_bf16(precision: str, device: torch.device) -> tuple[bool, str]:
    """Whether to run in bfloat16, and why."""
    if precision != "auto":
        return precision == "bf16", "asked for"
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported, f"{torch.cuda.get_device_name(device)} {'has' if supported else 'lacks'} bf16 units"
    if torch.cpu._is_amx_tile_supported():
        return True, "this CPU has AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return True, "this CPU has AVX512-BF16"
    return False, "this CPU has no bf16 units"
