"""Model folders as small as can be: real configurations, real tokenizers, and safetensors files that are all header."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

LLAMA_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
CHATML_TEMPLATE = """{% for message in messages %}
{% if loop.first and message.role != 'system' %}
{{ '<|im_start|>system\\nYou are kind.<|im_end|>' }}
{% endif %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}
{% endfor %}
{% if tools %}{{ tools | tojson }}{% endif %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
NO_SYSTEM_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
)

SPECIAL = [
    "<unk>", "<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>",
]  # fmt: skip


def make_tokenizer(adds_bos: bool = False) -> Tokenizer:
    """A byte-level BPE of 300 tokens; `adds_bos`: as Llama's, which puts <s> before plain text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world, how are you today? I am well."] * 4, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    return tokenizer


def write_tokenizer(
    folder: Path, template: str | None = LLAMA_TEMPLATE, *, adds_bos: bool = False, **config: Any
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(adds_bos).save(str(folder / "tokenizer.json"))
    data = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if template is not None:
        data["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps({**data, **config}))


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file's header with nothing behind it."""
    entries = {name: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 0]} for name, shape in shapes.items()}
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "vocab_size": 300,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}


def layer_shapes(layers: int = 2, hidden: int = 64, keys: int = 32, inner: int = 96) -> dict[str, tuple[int, int]]:
    one = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return {f"model.layers.{layer}.{name}": shape for layer in range(layers) for name, shape in one.items()}


def write_model(folder: Path, template: str | None = LLAMA_TEMPLATE, **changes: Any) -> Path:
    """A model folder; ``changes`` replace keys of its config.json, None takes one out."""
    write_tokenizer(folder, template)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in layer_shapes().items()}
    shapes["model.embed_tokens.weight"] = (300, 64)
    shapes["model.norm.weight"] = (64,)
    write_header(folder / "model.safetensors", shapes)
    return folder


def write_adapter(
    folder: Path, shapes: Mapping[str, tuple[int, int]] | None = None, rank: int = 16, **changes: Any
) -> Path:
    """A peft LoRA folder for `write_model`'s model; ``changes`` replace keys of its adapter_config.json."""
    folder.mkdir(parents=True)
    shapes = layer_shapes() if shapes is None else shapes
    names = sorted({name.rsplit(".", 1)[-1] for name in shapes})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 32, "target_modules": names, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    tensors: dict[str, tuple[int, ...]] = {}
    for name, (outputs, inputs) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = (rank, inputs)
        tensors[f"base_model.model.{name}.lora_B.weight"] = (outputs, rank)
    write_header(folder / "adapter_model.safetensors", tensors)
    return folder


def write_prompts(path: Path, count: int, start: int = 0, text: str = "hello {}") -> Path:
    rows = [{"id": f"p{number}", "prompt": text.format(number)} for number in range(start, start + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job(**sections: Any) -> dict[str, Any]:
    """A job that validates beside `write_world`'s files; ``sections`` are merged into it."""
    data: dict[str, Any] = {
        "policy": {"model": "./policy"},
        "prompts": {"source": "prompts.jsonl"},
        "scorer": {"model": {"kind": "function", "name": "length"}},
        "sampling": {"max_tokens": 32},
        "schedule": {"rounds": 2, "prompts_per_round": 8, "prompts_per_step": 4},
    }
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section} if isinstance(section, dict) else section
    return data


def write_world(folder: Path) -> Path:
    """The files that `job` names, and some more."""
    write_model(folder / "policy")
    write_prompts(folder / "prompts.jsonl", 20)
    write_prompts(folder / "held-out.jsonl", 6, start=100)
    return folder
