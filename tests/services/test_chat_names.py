"""What a model's name means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chat.names import ModelName, UnknownModel, parse_model, parse_variant

JOBS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,40}", fullmatch=True)
NAMES = st.one_of(
    st.builds(
        ModelName,
        JOBS,
        st.sampled_from(["fast", "slow"]),
        st.none() | st.integers(min_value=0, max_value=999_999_999),
    ),
    st.builds(ModelName, JOBS, base=st.just(True)),
)


@given(NAMES)
def test_a_name_reads_as_it_is_written(name: ModelName) -> None:
    assert parse_model(str(name)) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tiny-1", ModelName("tiny-1")),
        ("tiny-1@3", ModelName("tiny-1", version=3)),
        ("tiny-1:fast@3", ModelName("tiny-1", version=3)),
        ("tiny-1:slow", ModelName("tiny-1", "slow")),
        ("tiny-1:slow@0", ModelName("tiny-1", "slow", 0)),
        ("tiny-1:base", ModelName("tiny-1", base=True)),
    ],
)
def test_each_form_is_understood(text: str, name: ModelName) -> None:
    assert parse_model(text) == name


@pytest.mark.parametrize(
    "text", ["", "@3", "a@", "a@x", "a@-1", "a:", "a:best", "a:base@3", "a@3:slow", "a b", "a@1\n"]
)
def test_anything_else_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(UnknownModel, match="is not a model's name; write JOB"):
        parse_model(text)


@pytest.mark.parametrize(
    ("variant", "written"), [(3, "j@3"), ("3", "j@3"), ("slow", "j:slow"), ("slow@2", "j:slow@2"), ("base", "j:base")]
)
def test_a_variant_is_what_follows_the_job(variant: int | str, written: str) -> None:
    assert str(parse_variant("j", variant)) == written


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UnknownModel, match=r"versions: 'best' is not one of a job's policies"):
        parse_variant("j", "best")
