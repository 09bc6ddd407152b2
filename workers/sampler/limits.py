"""What vLLM can serve, as plain values that validation can read without importing it (rule 15)."""

from __future__ import annotations

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The rank ceilings that vLLM accepts. An adapter of a lower rank runs under the next one."""

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Attention head sizes that vLLM's CPU backend has kernels for."""

SERVED_MODULES = frozenset(
    {
        # Llama, Mistral, Qwen, Gemma, Granite, OLMo and their kin
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        # fused spellings (Phi-3, Baichuan, GLM)
        "qkv_proj", "gate_up_proj", "W_pack", "dense_4h_to_h", "dense_h_to_4h", "query_key_value", "dense",
        # Phi, OPT, StarCoder, GPT-2
        "fc1", "fc2", "out_proj", "c_attn", "c_proj", "c_fc",
    }
)  # fmt: skip
"""Linear layers, by the last part of their name, on which the sampler serves adapters.

The output layer and the embeddings are left out on purpose: wrapped, they cost memory and time on every token, and measuring several
texts at a time kills vLLM's CPU engine.
"""
