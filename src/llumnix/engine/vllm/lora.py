"""A LoRA adapter in vLLM's words and in those of the server's state (control/server_state.py)."""

from __future__ import annotations

from vllm.lora.request import LoRARequest

from llumnix.control.server_state import Adapter


def request_for(adapter: Adapter, load_inplace: bool = False) -> LoRARequest:
    return LoRARequest(
        lora_name=adapter.name,
        lora_int_id=adapter.id,
        lora_path=adapter.path,
        base_model_name=adapter.base_model_name,
        load_inplace=load_inplace,
        is_3d_lora_weight=adapter.is_3d_lora_weight,
    )


def adapter_of(request: LoRARequest, generation: int) -> Adapter:
    return Adapter(
        id=request.lora_int_id,
        name=request.lora_name,
        path=request.lora_path,
        base_model_name=request.base_model_name,
        is_3d_lora_weight=request.is_3d_lora_weight,
        generation=generation,
    )
