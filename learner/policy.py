"""The policy: one frozen base, the adapter that is trained (`fast`), and one slot for a frozen reference.

peft switches adapters in place. Three of its traps are kept out here: a switch between a forward and its backward loses
the gradient in silence, so the reference is only entered under ``no_grad`` and always left again; switching and
disabling change ``requires_grad``, so it is set again; and the initial weights depend on global random state, so they
are drawn from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from learner.adapter_files import adapter_to_files, check_adapter, files_to_adapter
from learner.config import AdapterConfig, LearnerConfig, PolicyConfig
from learner.errors import InputError
from learner.likelihood import AutoregressiveLikelihood
from learner.records import ADAPTER_FILES
from learner.seeds import derive_seed

FAST = "fast"
REFERENCE = "reference"

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

AdapterState = Mapping[str, Tensor]
"""Adapter weights by peft's names, without the adapter's own, float32 on the CPU."""


def choose_device(config: LearnerConfig) -> torch.device:
    """The device that a configuration means.

    Raises:
        InputError: a GPU was asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("resources.learner.device: cuda, but no GPU is visible; use auto or cpu")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


def load_base(config: PolicyConfig, device: torch.device) -> PreTrainedModel:
    """The base model: safetensors only, no code from the model's repository.

    Raises:
        InputError: it cannot be loaded.
    """
    if config.dtype == "auto":
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    else:
        dtype = _DTYPES[config.dtype]
    try:
        model = AutoModelForCausalLM.from_pretrained(
            config.model, revision=config.revision, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
            model.set_attn_implementation("eager")  # the other implementations leave the cap out
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"policy.model: {config.model} cannot be loaded: {reason}") from error
    return model.to(device)


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names (the last part) of the linear layers that can get an adapter: all but the output layer, sorted."""
    output = model.get_output_embeddings()
    layers = (name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not output)
    return sorted({name.rsplit(".", 1)[-1] for name in layers})


def resolve_target_modules(model: PreTrainedModel, config: AdapterConfig) -> list[str]:
    """The layers that get an adapter, as an explicit sorted list.

    Raises:
        InputError: a name is not one of the model's linear layers, or there are none.
    """
    layers = linear_layers(model)
    if not layers:
        raise InputError(f"policy.model: {type(model).__name__} has no linear layers for LoRA; use another family")
    if config.target_modules == "all-linear":
        return layers
    unknown = sorted(set(config.target_modules) - set(layers))
    if unknown or not config.target_modules:
        raise InputError(
            f"adapters.target_modules: {', '.join(unknown) or 'an empty list'} is not among the model's linear layers; "
            f"choose from {', '.join(layers)}"
        )
    return sorted(set(config.target_modules))


class Policy:
    """A frozen base with a LoRA adapter that is trained."""

    def __init__(
        self,
        base: PreTrainedModel,
        adapters: AdapterConfig,
        seed: int,
        name: str,
        chunk_tokens: int = 1024,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Wrap ``base``, in place.

        Args:
            base: on its device, in its type. LoRA weights are float32 whatever it is.
            adapters: what is trained.
            seed: of the initial weights.
            name: what the adapter's configuration calls the base.
            chunk_tokens: tokens whose logits are held at a time.
            gradient_checkpointing: compute activations again in the backward pass.
        """
        self.config = adapters
        self.name = name
        self.device = base.device
        self.target_modules = resolve_target_modules(base, adapters)
        _switch_off_dropout(base)
        if gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        base.requires_grad_(False)
        alpha = int(adapters.alpha) if adapters.alpha == int(adapters.alpha) else adapters.alpha
        self._lora = LoraConfig(
            r=adapters.rank,
            lora_alpha=alpha,
            lora_dropout=adapters.dropout,
            target_modules=self.target_modules,
            bias="none",
            task_type="CAUSAL_LM",
        )
        wrapped = get_peft_model(base, self._lora, adapter_name=FAST)
        assert isinstance(wrapped, PeftModel)
        self.model = wrapped
        self.parameters = self._weights(FAST)
        self._slot: dict[str, nn.Parameter] | None = None
        self._initialise(seed)
        self._train_fast()
        self.likelihood = AutoregressiveLikelihood(base, chunk_tokens)

    @classmethod
    def load(
        cls,
        config: PolicyConfig,
        adapters: AdapterConfig,
        learner: LearnerConfig,
        seed: int,
        base: PreTrainedModel | None = None,
    ) -> Policy:
        """The policy that a job starts from: the base, and the start adapter where there is one.

        Args:
            config: which model.
            adapters: what is trained.
            learner: device, chunk size, checkpointing.
            seed: of the initial weights.
            base: a model that is already there, instead of loading ``config.model``.

        Raises:
            InputError: the model or the adapter cannot be used.
        """
        base = load_base(config, choose_device(learner)) if base is None else base
        policy = cls(base, adapters, seed, config.model, learner.logit_chunk_tokens, learner.gradient_checkpointing)
        if config.adapter is not None:
            folder = Path(config.adapter)
            policy.load_files(
                {name: (folder / name).read_bytes() for name in ADAPTER_FILES if (folder / name).is_file()}
            )
        return policy

    def _weights(self, adapter: str) -> dict[str, nn.Parameter]:
        """Weights of an adapter by peft's names, sorted."""
        found = {n.replace(f".{adapter}.", "."): p for n, p in self.model.named_parameters() if f".{adapter}." in n}
        return dict(sorted(found.items()))

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """A as `nn.Linear` draws it (uniform within 1 / sqrt(fan in)), from the seed and the name alone; B = 0."""
        for name, weight in self.parameters.items():
            if "lora_A" in name:
                generator = torch.Generator().manual_seed(derive_seed(seed, "adapter", name))
                bound = 1 / math.sqrt(weight.shape[1])
                weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
            else:
                weight.zero_()

    def _train_fast(self) -> None:
        """Make `fast` the active adapter, and the only thing that gradients flow to."""
        self.model.set_adapter(FAST)
        self.model.train()
        for weight in (self._slot or {}).values():
            weight.requires_grad_(False)
        for weight in self.parameters.values():
            weight.requires_grad_(True)

    def state(self) -> dict[str, Tensor]:
        """A copy of the trained adapter's weights, float32 on the CPU."""
        return {name: weight.detach().to("cpu", torch.float32, copy=True) for name, weight in self.parameters.items()}

    @torch.no_grad()
    def load_state(self, state: AdapterState) -> None:
        """Set the trained adapter's weights."""
        for name, weight in self.parameters.items():
            weight.copy_(state[name])

    def files(self) -> dict[str, bytes]:
        """The trained adapter as bytes, in peft's layout; equal weights give equal bytes."""
        config: dict[str, Any] = {
            key: sorted(value) if isinstance(value, set) else value for key, value in self._lora.to_dict().items()
        }
        config |= {"base_model_name_or_path": self.name, "inference_mode": True, "target_modules": self.target_modules}
        return adapter_to_files(config, self.state())

    def read_files(self, files: Mapping[str, bytes]) -> dict[str, Tensor]:
        """The weights that adapter files hold.

        Raises:
            InputError: they are not of an adapter like the trained one.
        """
        config, state = files_to_adapter(files)
        shapes = {name: weight.shape for name, weight in self.parameters.items()}
        check_adapter(config, state, self.config.rank, self.config.alpha, shapes)
        return state

    def load_files(self, files: Mapping[str, bytes]) -> None:
        """Set the trained adapter's weights from its files."""
        self.load_state(self.read_files(files))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The trained adapter without dropout and without gradients."""
        with torch.no_grad():
            self.model.eval()
            try:
                yield
            finally:
                self.model.train()

    @contextmanager
    def reference(self, state: AdapterState | None) -> Iterator[None]:
        """Another policy in place of the trained one: the bare base (None) or a frozen adapter; no dropout or gradients.

        Never to be entered between a forward and its backward.
        """
        try:
            with self.evaluating():
                if state is None:
                    with self.model.disable_adapter():
                        yield
                else:
                    self._fill_slot(state)
                    self.model.set_adapter(REFERENCE)
                    yield
        finally:
            self._train_fast()

    def _fill_slot(self, state: AdapterState) -> None:
        if self._slot is None:
            self.model.add_adapter(REFERENCE, replace(self._lora, lora_dropout=0.0))
            self._slot = self._weights(REFERENCE)
        for name, weight in self._slot.items():
            weight.copy_(state[name])


def _switch_off_dropout(base: PreTrainedModel) -> None:
    """The base is frozen: its own dropout would only blur the log-ratios. The adapter's dropout stays."""
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
