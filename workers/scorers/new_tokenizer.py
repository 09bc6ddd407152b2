"""A tokenizer for a PairRM that starts from nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from learner.errors import InputError
from workers.scorers.pairrm_tokens import PREFIXES

PAD, CLS, SEP = "[PAD]", "[CLS]", "[SEP]"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with PairRM's special tokens. Any text can be written in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(PREFIXES),
        special_tokens=[PAD, CLS, SEP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer)


def adopt_tokenizer(folder: str) -> PreTrainedTokenizerFast:
    """Take another model's tokenizer and put [CLS] and [SEP] round what it reads, as PairRM needs.

    Args:
        folder: a folder with ``tokenizer.json``.

    Raises:
        InputError: there is no such file, or it is not a tokenizer.
    """
    path = Path(folder).expanduser() / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            f"tokenizer: {folder} has no tokenizer.json; give a folder that has one, or none to train a tokenizer"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a bad file
        raise InputError(f"tokenizer: {path} cannot be read ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens([PAD, CLS, SEP])
    return _wrap(tokenizer)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = TemplateProcessing(
        single=f"{CLS} $A {SEP}", special_tokens=[(name, tokenizer.token_to_id(name)) for name in (CLS, SEP)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, cls_token=CLS, sep_token=SEP)
