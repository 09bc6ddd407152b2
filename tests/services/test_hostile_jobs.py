"""Job files, prompts and preferences that somebody wrote to do harm, or with a slip that comes to the same: a sentence each (rule 15)."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_models import job, write_world

from learner.errors import InputError
from services.jobs.feedback import parse_preference, read_preferences
from services.jobs.load import load_job, parse_job
from services.jobs.problems import shown
from services.jobs.prompts import read_prompts
from services.jobs.spec import PromptsConfig
from services.jobs.spec_checks import warnings
from services.jobs.validate import validate_job

MANY_DIGITS = "9" * 5000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
"""Ten lines that stand for three thousand million texts."""


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("job.json", '{"a": ' + "[" * 100_000, "nested too deeply"),
        ("job.json", f'{{"seed": {MANY_DIGITS}}}', "a value cannot be read"),
        ("job.json", '{"seed": 1, "seed": 2}', "job.json: the key `seed` stands twice"),
        ("job.yaml", "a: " + "[" * 5000, "nested too deeply"),
        ("job.yaml", f"seed: {MANY_DIGITS}", "a value cannot be read"),
        ("job.yaml", "metadata: {day: 2001-99-99}", "month must be in 1..12"),
        ("job.yaml", BOMB, "j: unknown key"),
        ("job.yaml", "1: x", "1 stands where a key belongs"),
        ("job.yaml", "name: &name [*name]", "name: a value of type list must be text"),
        ("job.yaml", "name: [{2001-01-01: 3}]", "name: a value of type list must be text"),
        ("job.yaml", f"name: 0x{'f' * 20_000}", "name: a value of type int must be text"),
    ],
    ids=range(11),
)
def test_a_file_that_cannot_be_held_is_refused(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_job(path)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 5000


def test_only_what_is_shown_of_a_value_is_written() -> None:
    bomb: list[Any] = ["x"]
    for _ in range(100):
        bomb = [bomb] * 10
    assert len(shown(bomb)) == 80
    assert shown("half \ud800") == '"half \\ud800"'


@pytest.mark.parametrize(
    ("section", "key", "value", "sentence"),
    [
        ("schedule", "rounds", 10**400, "schedule.rounds: 1000"),
        ("schedule", "memory_bytes", 1 << 63, "it must be at most 9223372036854775807"),
        ("policy", "model", "./a\0", 'policy.model: "./a\\u0000" holds "\\u0000"'),
        ("schedule", "domains", ["\ud800"], 'schedule.domains[0]: "\\ud800" holds "\\ud800"'),
        ("metadata", "a", "\ud800", "holds half of a surrogate pair"),
    ],
)
def test_endless_numbers_and_text_that_is_none_are_refused(section: str, key: str, value: Any, sentence: str) -> None:
    data = job()
    data.setdefault(section, {})[key] = value
    with pytest.raises(InputError) as caught:
        parse_job(data)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", ["~nobody-here/model", "./" + "x" * 5000, "a/" + "x" * 5000, "x" * 5000])
def test_a_path_that_cannot_be_followed_is_refused(name: str, tmp_path: Path) -> None:
    write_world(tmp_path)
    for section, key in (("policy", "model"), ("prompts", "source")):
        data = job() | {"scorer": {}}
        data[section][key] = name if key == "model" else name + ".jsonl"
        if name.startswith("a/") and key == "model":
            validate_job(parse_job(data), tmp_path)  # a name on the hub, as far as anyone can say without it
            continue
        with pytest.raises(InputError, match=rf"^{section}.{key}: "):
            validate_job(parse_job(data), tmp_path)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("prompts.jsonl", "prompts.jsonl cannot"),
        ("prompts.csv", "prompts.source: "),
        ("policy/config.json", "policy.model: "),
        ("policy/tokenizer_config.json", "policy.model: "),
        ("policy/chat_template.jinja", "policy.model: "),
        ("policy/model.safetensors", "policy.model: "),
    ],
)
def test_a_file_that_may_not_be_read_is_refused_by_name(
    name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_world(tmp_path)
    (tmp_path / "prompts.csv").write_text("prompt\n" + "hello\n" * 20)
    (tmp_path / "policy" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    data = job() | {"scorer": {}}
    if name.endswith(".csv"):
        data["prompts"]["source"] = name
    validate_job(parse_job(data), tmp_path)
    locked, opened = tmp_path / name, Path.open

    def refusing(path: Path, *args: Any, **kwargs: Any) -> Any:  # modes do not hinder root, who runs tests
        if path == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\); let this user read it") as caught:
        validate_job(parse_job(data), tmp_path)
    assert key in str(caught.value) and str(locked) in str(caught.value)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (f'{{"prompt": "a", "id": {MANY_DIGITS}}}', "not JSON (a number of too many digits)"),
        (r'{"prompt": "a", "id": "\ud800"}', r'the id "\ud800" holds NUL or half of a surrogate pair'),
        (r'{"prompt": "a", "domain": "a\u0000"}', r'the domain "a\u0000" holds NUL or half of a surrogate pair'),
    ],
    ids=("digits", "id", "domain"),
)
def test_a_prompt_whose_names_are_no_text_is_refused_by_line(row: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n' + row)
    with pytest.raises(InputError) as caught:
        read_prompts(PromptsConfig(source=str(path)))
    assert f"line 2: {sentence}" in str(caught.value)


@pytest.mark.parametrize("field", ["id", "domain", "rater", "prompt", "chosen"])
def test_a_preference_that_databases_cannot_hold_is_refused_by_field(field: str) -> None:
    body = {"prompt": "a", "chosen": "b", "rejected": "c", field: "x\0y"}
    with pytest.raises(InputError) as caught:
        parse_preference("preferences[3]", json.loads(json.dumps(body)))
    assert str(caught.value).startswith(f'preferences[3]: {field}: "x\\u0000y" holds "\\u0000"')


def test_a_domain_that_differs_by_a_blank_is_told_in_quotes(tmp_path: Path) -> None:
    write_world(tmp_path)
    data = job() | {"scorer": {}}
    data["schedule"]["domains"] = ["bills "]
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=r"^schedule.domains: 'bills ' is the domain of no prompt"):
        validate_job(load_job(path), tmp_path)


def test_keys_that_nothing_reads_are_warned_of() -> None:
    data = job()
    data["adapters"] = {"slow": "average", "swap": "weights", "slow_decay": 0.5}
    data["schedule"] |= {"memory_share": 0.5}
    told = [each for each in warnings(parse_job(data)) if "has no effect" in each]
    assert told == [
        "adapters.swap: weights has no effect without adapters.slow: chase",
        "schedule.memory_share: 0.5 has no effect without schedule.combine: cofs",
    ]


def test_adapters_that_are_never_compared_are_warned_of() -> None:
    data = job() | {"objective": {"kind": "chase"}, "adapters": {"slow": "chase", "swap_interval": 48}}
    data["schedule"] = {"rounds": 3, "prompts_per_round": 250, "prompts_per_step": 16}
    assert not [each for each in warnings(parse_job(data)) if "swap_interval" in each]
    data["adapters"]["swap_interval"] = 49
    told = [each for each in warnings(parse_job(data)) if "swap_interval" in each]
    assert told[0].startswith("adapters.swap_interval: 49 is more than the 48 optimizer steps of the whole job")


def test_a_file_of_preferences_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(path: Path, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    path = tmp_path / "preferences.jsonl"
    path.write_text("{}")
    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(InputError, match=r"preferences.jsonl cannot be read \(Permission denied\)"):
        read_preferences(path)


def test_a_file_of_preferences_that_is_none_is_told_apart(tmp_path: Path) -> None:
    for path, sentence in ((tmp_path, "is no plain file"), (tmp_path / ("x" * 5000), "there is no such file")):
        with pytest.raises(InputError, match=sentence):
            read_preferences(path)
