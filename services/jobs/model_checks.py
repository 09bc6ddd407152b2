"""What the policy's files say against the job, without loading a weight (rule 15)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from learner.config import AdapterConfig
from services.jobs.model_files import ModelFiles, read_json, safetensors_shapes
from services.jobs.problems import one_of, shown
from services.jobs.rendering import PromptRenderer
from services.jobs.spec import JobSpec
from workers.sampler.limits import CPU_HEAD_SIZES, SERVED_MODULES

VERIFIED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
)
"""Families whose log-probabilities under an adapter agree between sampler and learner in this project's parity tests."""

NEUTRAL_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Initialisations that leave a saved adapter a plain LoRA; the others change the base's weights."""


def problems(spec: JobSpec, model: ModelFiles) -> Iterator[str]:
    """What in the model's configuration and tensors cannot work with the job."""
    if model.architecture is None:
        yield f"policy.model: {model.folder}/config.json names no architectures, so nobody knows how to load it"
    elif not model.architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        yield f"policy.model: {model.architecture} does not write text; a causal language model is needed"
    if "quantization_config" in model.config:
        yield "policy.model: its weights are quantised; adapters are trained on float32, bfloat16 or float16 weights only"
    if "auto_map" in model.config and model.architecture not in VERIFIED_ARCHITECTURES:
        yield "policy.model: it brings Python code of its own, which is never run; use a model that transformers knows"
    if not model.tensors and model.folder.is_dir() and not _is_metadata_only(model):
        yield f"policy.model: {model.folder} holds no weights (*.safetensors)"
    if (
        spec.samples
        and spec.resources.sampler.gpus == 0
        and model.head_size is not None
        and model.head_size not in CPU_HEAD_SIZES
    ):
        yield (
            f"policy.model: its attention heads have size {model.head_size}, and vLLM's CPU backend takes "
            f"{one_of(CPU_HEAD_SIZES)}; use another model, or a GPU"
        )
    parallel = spec.resources.sampler.tensor_parallel_size if spec.samples else 1
    if model.heads is not None and model.heads % parallel:
        yield (
            f"resources.sampler.tensor_parallel_size: {parallel} does not divide the model's {model.heads} attention heads; "
            "choose a divisor"
        )
    wanted, limit = spec.policy.max_context_tokens, model.context_tokens
    if wanted is not None and limit is not None and wanted > limit:
        yield f"policy.max_context_tokens: {wanted} is more than the {limit} that the model was made for; lower it"
    if limit is None and wanted is None:
        yield "policy.max_context_tokens: the model's configuration does not say how long its context is; set it"
    modules = model.linear_names if spec.adapters.target_modules == "all-linear" else spec.adapters.target_modules
    for name in modules:
        if name not in SERVED_MODULES:
            yield (
                f"adapters.target_modules: samplers cannot serve an adapter on {name}; name the layers in a list, of "
                f"{', '.join(sorted(SERVED_MODULES & set(model.linear_names))) or 'another model'}"
            )
    if model.linear_names:
        for name in modules:
            if name not in model.linear_names:
                yield f"adapters.target_modules: the model has no linear layer {name}; it has {', '.join(model.linear_names)}"


def _is_metadata_only(model: ModelFiles) -> bool:
    """A folder of the hub's cache from which only the small files were fetched."""
    return model.folder.parent.name == "snapshots"


def warnings(model: ModelFiles) -> Iterator[str]:
    """What is not known to be wrong."""
    if model.architecture is not None and model.architecture not in VERIFIED_ARCHITECTURES:
        yield (
            f"policy.model: {model.architecture} is not among the families whose sampler and learner were compared "
            f"({', '.join(name.removesuffix('ForCausalLM') for name in VERIFIED_ARCHITECTURES)}); the canary will tell"
        )


def tokenizer_problems(model: ModelFiles, renderer: PromptRenderer) -> Iterator[str]:
    """What in the tokenizer does not fit the model."""
    rows = model.vocabulary
    if rows is not None and renderer.highest_token_id >= rows:
        yield (
            f"policy.model: the tokenizer knows ids up to {renderer.highest_token_id}, but the model has {rows} embeddings; "
            "they do not belong together"
        )
    eos = eos_token_ids(model, renderer)
    if not eos:
        yield "policy.model: neither its configuration nor its tokenizer names an EOS token, so no answer could end; set eos_token_id"
    for identity in eos:
        if rows is not None and not 0 <= identity < rows:
            yield f"policy.model: the EOS token {identity} is not among the model's {rows} embeddings; mend eos_token_id"


def eos_token_ids(model: ModelFiles, renderer: PromptRenderer) -> tuple[int, ...]:
    """Ids that end an answer: the model's own, else the tokenizer's."""
    if model.eos_token_ids:
        return model.eos_token_ids
    identity = renderer.token_id("eos_token")
    return () if identity is None else (identity,)


def answer_end(model: ModelFiles, renderer: PromptRenderer) -> int:
    """Id of the token that ends a given answer (rule 2): the EOS that the chat template writes behind one, else the tokenizer's, else
    the model's first. The model has passed `tokenizer_problems`."""
    own, said = eos_token_ids(model, renderer), renderer.token_id("eos_token")
    after = [identity for identity in renderer.token_ids_after_answer if identity in own or identity == said]
    return after[0] if after else own[0] if said is None else said


def adapter_problems(folder: Path, adapters: AdapterConfig, model: ModelFiles | None) -> Iterator[str]:
    """What keeps a start adapter from being served, or from being trained on with the job's ``adapters``."""
    key = "policy.adapter"
    config = read_json(folder / "adapter_config.json", key)
    if config.get("peft_type") != "LORA":
        yield f"{key}: it is of the type {shown(config.get('peft_type'))}; only LORA is taken"
        return
    init = config.get("init_lora_weights", True)
    refused = {
        "use_dora: true (DoRA)": config.get("use_dora"),
        f"modules_to_save: {shown(config.get('modules_to_save'))}": config.get("modules_to_save"),
        "lora_bias: true": config.get("lora_bias"),
        f"bias: {config.get('bias')}": config.get("bias", "none") != "none",
        f"init_lora_weights: {init}": isinstance(init, str) and init.lower() not in NEUTRAL_INITS,
        "use_rslora: true": config.get("use_rslora"),
        "rank_pattern": config.get("rank_pattern"),
        "alpha_pattern": config.get("alpha_pattern"),
        "layer_replication": config.get("layer_replication"),
        "layers_to_transform": config.get("layers_to_transform"),
        "target_parameters": config.get("target_parameters"),
        "trainable_token_indices": config.get("trainable_token_indices"),
        "alora_invocation_tokens": config.get("alora_invocation_tokens"),
        "use_qalora: true": config.get("use_qalora"),
        "use_bdlora": config.get("use_bdlora"),
    }
    for what, present in refused.items():
        if present:
            yield f"{key}: its adapter_config.json has {what}, which samplers cannot serve; start from a plain LoRA"
    if config.get("r") != adapters.rank:
        yield f"adapters.rank: {adapters.rank} differs from the start adapter's {config.get('r')}; set it to {config.get('r')}"
    if config.get("lora_alpha") != adapters.alpha:
        alpha = config.get("lora_alpha")
        yield f"adapters.alpha: {adapters.alpha:g} differs from the start adapter's {alpha}; set it to {alpha}"
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        yield f"{key}: {folder} has no adapter_model.safetensors" + (
            "; convert the pickled adapter_model.bin" if (folder / "adapter_model.bin").is_file() else ""
        )
        return
    yield from _adapter_shapes(key, safetensors_shapes(weights, key), adapters, model)


def _adapter_shapes(
    key: str, tensors: dict[str, tuple[int, ...]], adapters: AdapterConfig, model: ModelFiles | None
) -> Iterator[str]:
    """Compare the adapter's matrices with the model's layers: same layers, same sizes."""
    inputs: dict[str, int] = {}
    outputs: dict[str, int] = {}
    for name, shape in tensors.items():
        layer, _, matrix = name.removeprefix("base_model.model.").rpartition(".lora_")
        if matrix not in ("A.weight", "B.weight") or len(shape) != 2:
            yield f"{key}: its tensor {name} is not part of a plain LoRA; start from a plain LoRA"
            return
        if matrix == "A.weight":
            inputs[layer] = shape[1]
        else:
            outputs[layer] = shape[0]
    names = {layer.rsplit(".", 1)[-1] for layer in inputs}
    wanted: set[str] | None = None
    if adapters.target_modules != "all-linear":
        wanted = set(adapters.target_modules)
    elif model is not None and model.linear_names:
        wanted = set(model.linear_names)
    if wanted is not None and names != wanted:
        yield (
            f"adapters.target_modules: {', '.join(sorted(wanted))} differ from the start adapter's {', '.join(sorted(names))}; "
            f"set it to [{', '.join(sorted(names))}]"
        )
        return
    if model is None or not model.linear_layers:
        return
    expected = {layer: shape for layer, shape in model.linear_layers.items() if layer.rsplit(".", 1)[-1] in names}
    for layer, (out_size, in_size) in expected.items():
        found = (outputs.get(layer), inputs.get(layer))
        if found != (out_size, in_size):
            has = "nothing" if found == (None, None) else f"{found[0]} x {found[1]}"
            yield (
                f"{key}: it was made for another model: {layer} is {out_size} x {in_size} in policy.model, and the adapter has {has}; "
                "name the base that it was trained on"
            )
            return
    if extra := sorted(set(inputs) - set(expected)):
        yield f"{key}: it was made for another model: it has {extra[0]}, which policy.model lacks; name the base that it was trained on"
