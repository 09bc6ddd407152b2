"""The policy: one frozen base, one or two adapters that are trained, what they are trained on top of, and a slot for a reference.

peft switches adapters in place. Three of its traps are kept out here: a switch between a forward and its backward loses
the gradient in silence, so whoever learns with an adapter switches to it before the forward (:meth:`Policy.train`), and
others are only entered under ``no_grad`` and always left again; switching and disabling change ``requires_grad``, so it
is set again; and the initial weights depend on global random state, so they are drawn from the seed.
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
from learner.combination import Adapter, combine
from learner.config import AdapterConfig, LearnerConfig, PolicyConfig
from learner.errors import InputError
from learner.likelihood import AutoregressiveLikelihood
from learner.records import ADAPTER_FILES
from learner.seeds import derive_seed

FIRST, SECOND = "first", "second"
"""The adapters that are trained. Which of them is fast and which slow is a role, and may change."""

FROZEN = "frozen"
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
    """A frozen base with adapters that are trained, one at a time."""

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
            adapters: what is trained. With a slow adapter there are two, and they begin with equal weights.
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
        self._lora = LoraConfig(
            r=adapters.rank,
            lora_alpha=_plain(adapters.alpha),
            lora_dropout=adapters.dropout,
            target_modules=self.target_modules,
            bias="none",
            task_type="CAUSAL_LM",
        )
        wrapped = get_peft_model(base, self._lora, adapter_name=FIRST)
        assert isinstance(wrapped, PeftModel)
        self.model = wrapped
        self.weights = {FIRST: self._weights(FIRST)}
        if adapters.slow != "off":
            self.model.add_adapter(SECOND, self._lora)
            self.weights[SECOND] = self._weights(SECOND)
        self.active = FIRST
        self.frozen: Adapter | None = None
        self._slot: Adapter | None = None
        self._seed = seed
        self.begin_afresh()
        self.train(FIRST)
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
            files = {name: (folder / name).read_bytes() for name in ADAPTER_FILES if (folder / name).is_file()}
            for module in policy.weights:
                policy.load_files(files, module)
        return policy

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The active adapter's weights by peft's names, sorted."""
        return self.weights[self.active]

    def _weights(self, adapter: str) -> dict[str, nn.Parameter]:
        """Weights of an adapter by peft's names, sorted."""
        found = {n.replace(f".{adapter}.", "."): p for n, p in self.model.named_parameters() if f".{adapter}." in n}
        return dict(sorted(found.items()))

    @torch.no_grad()
    def begin_afresh(self) -> None:
        """Initial weights for every trained adapter, the same for all.

        A as `nn.Linear` draws it (uniform within 1 / sqrt(fan in)), from the seed and the name alone; B = 0.
        """
        for weights in self.weights.values():
            for name, weight in weights.items():
                if "lora_A" in name:
                    generator = torch.Generator().manual_seed(derive_seed(self._seed, "adapter", name))
                    bound = 1 / math.sqrt(weight.shape[1])
                    weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
                else:
                    weight.zero_()

    def train(self, adapter: str) -> None:
        """Make an adapter the active one. Gradients flow to what a forward after this one used.

        Never to be called between a forward and its backward.
        """
        self.active = adapter
        self._switch(adapter)
        self.model.train()

    def _switch(self, adapter: str) -> None:
        """Have forwards use the base, what is frozen on top of it, and a trained adapter."""
        self.model.base_model.set_adapter([FROZEN, adapter] if self.frozen is not None else [adapter])
        trained = {id(weight) for weights in self.weights.values() for weight in weights.values()}
        for name, weight in self.model.named_parameters():
            if "lora_" in name:
                weight.requires_grad_(id(weight) in trained)

    @torch.no_grad()
    def freeze(self, combination: Adapter | None) -> None:
        """Train on top of ``combination`` from now on; None is the bare base. The trained adapters keep their weights."""
        if self.frozen is not None:
            self.model.delete_adapter(FROZEN)
        self.frozen = combination
        if combination is not None:
            self._put(FROZEN, combination)
        self.train(self.active)

    def state(self, adapter: str | None = None) -> dict[str, Tensor]:
        """A copy of a trained adapter's weights (the active one's by default), float32 on the CPU, without what is frozen below it."""
        weights = self.weights[adapter or self.active]
        return {name: weight.detach().to("cpu", torch.float32, copy=True) for name, weight in weights.items()}

    @torch.no_grad()
    def load_state(self, state: AdapterState, adapter: str | None = None) -> None:
        """Set a trained adapter's weights."""
        for name, weight in self.weights[adapter or self.active].items():
            weight.copy_(state[name])

    def increment(self, adapter: str | None = None) -> Adapter:
        """A trained adapter alone, without what is frozen below it."""
        return Adapter(self.state(adapter), self.config.rank, self.config.alpha)

    def adapter(self, adapter: str | None = None) -> Adapter:
        """A trained adapter together with what it is trained on top of: the policy, as one adapter of the base."""
        increment = self.increment(adapter)
        if self.frozen is None:
            return increment
        fresh = not any(value.any() for name, value in increment.state.items() if "lora_B" in name)
        return combine([self.frozen, increment], [1.0, 0.0 if fresh else 1.0])

    def files(self, adapter: str | None = None) -> dict[str, bytes]:
        """The policy under a trained adapter as bytes, in peft's layout; equal weights give equal bytes."""
        whole = self.adapter(adapter)
        config: dict[str, Any] = {
            key: sorted(value) if isinstance(value, set) else value for key, value in self._lora.to_dict().items()
        }
        config |= {"base_model_name_or_path": self.name, "inference_mode": True, "target_modules": self.target_modules}
        config |= {"r": whole.rank, "lora_alpha": _plain(whole.alpha)}
        return adapter_to_files(config, whole.state)

    def read_files(self, files: Mapping[str, bytes]) -> Adapter:
        """The adapter that files hold, of any rank.

        Raises:
            InputError: they are not of an adapter on the trained one's layers.
        """
        config, state = files_to_adapter(files)
        rank = int(config.get("r") or 0)
        shapes = {
            name: torch.Size((rank, *weight.shape[1:]) if "lora_A" in name else (*weight.shape[:1], rank))
            for name, weight in self.weights[FIRST].items()
        }
        check_adapter(config, state, shapes)
        return Adapter(state, rank, float(config["lora_alpha"]))

    def load_files(self, files: Mapping[str, bytes], adapter: str | None = None) -> None:
        """Set a trained adapter's weights from its files.

        Raises:
            InputError: the files' adapter differs from the trained one in rank, scale or layers.
        """
        found = self.read_files(files)
        for key, ours, theirs in (
            ("rank", self.config.rank, found.rank),
            ("alpha", self.config.alpha, _plain(found.alpha)),
        ):
            if theirs != ours:
                raise InputError(
                    f"adapters.{key}: {_plain(ours)} differs from the start adapter's {theirs}; set adapters.{key}: {theirs}"
                )
        self.load_state(found.state, adapter)

    @contextmanager
    def evaluating(self, adapter: str | None = None) -> Iterator[None]:
        """A trained adapter (the active one by default) without dropout and without gradients.

        Never to be entered between a forward and its backward, unless for the active one.
        """
        with torch.no_grad():
            self.model.eval()
            other = adapter is not None and adapter != self.active
            try:
                if other:
                    self._switch(str(adapter))
                yield
            finally:
                if other:
                    self._switch(self.active)
                self.model.train()

    @contextmanager
    def reference(self, adapter: Adapter | None) -> Iterator[None]:
        """Another policy in place of the trained one: the bare base (None) or an adapter of it; no dropout or gradients.

        Never to be entered between a forward and its backward.
        """
        try:
            with self.evaluating():
                if adapter is None:
                    with self.model.disable_adapter():
                        yield
                else:
                    self._fill_slot(adapter)
                    self.model.base_model.set_adapter([REFERENCE])
                    yield
        finally:
            self.train(self.active)

    def _fill_slot(self, adapter: Adapter) -> None:
        held = self._slot
        if held is not None and (held.rank, held.alpha) != (adapter.rank, adapter.alpha):
            self.model.delete_adapter(REFERENCE)
            held = None
        if held is None:
            self._put(REFERENCE, adapter)
        elif held is not adapter:
            for name, weight in self._weights(REFERENCE).items():
                weight.copy_(adapter.state[name])
        self._slot = adapter

    def _put(self, slot: str, adapter: Adapter) -> None:
        """Give peft an adapter that is never trained."""
        lora = replace(self._lora, r=adapter.rank, lora_alpha=_plain(adapter.alpha), lora_dropout=0.0)
        self.model.add_adapter(slot, lora)
        for name, weight in self._weights(slot).items():
            weight.copy_(adapter.state[name])


def _plain(alpha: float) -> float | int:
    """A whole number as an int, the way that peft's configurations are usually written."""
    return int(alpha) if alpha == int(alpha) else alpha


def _switch_off_dropout(base: PreTrainedModel) -> None:
    """The base is frozen: its own noise would only blur the log-ratios. The adapter's dropout stays.

    Many families keep a probability as a number of their own, under names of all kinds, and pass it to a function. The one left is a threshold
    of PhiMoE's router, which counts in evaluation too.
    """
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or "jitter" in name) and name != "router_jitter_noise":
                setattr(module, name, 0.0)
