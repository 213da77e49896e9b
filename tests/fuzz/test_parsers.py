"""Random bytes, damaged files and changed documents: every parser returns a value or refuses in one sentence."""

from random import Random

import mutations
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from target import Target
from targets import TARGETS

# What is found here must be found by everybody; run.py looks further.
SETTINGS = settings(
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
numbers = st.integers(0, 2**32)


@every_target
def test_some_valid_file_is_taken(target: Target) -> None:
    assert any(target(content) for content in target.seeds())


@pytest.mark.filterwarnings("ignore")
@every_target
@settings(SETTINGS, max_examples=30)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_value_or_a_sentence(target: Target, content: bytes) -> None:
    target(content)


@pytest.mark.filterwarnings("ignore")
@every_target
@settings(SETTINGS, max_examples=40)
@given(number=numbers)
def test_damaged_files_are_a_value_or_a_sentence(target: Target, number: int) -> None:
    random = Random(number)
    seeds = target.seeds()
    target(mutations.damaged(random.choice(seeds), seeds, random))


@pytest.mark.filterwarnings("ignore")
@every_target
@settings(SETTINGS, max_examples=80)
@given(number=numbers)
def test_changed_documents_are_a_value_or_a_sentence(target: Target, number: int) -> None:
    target(target.hostile(target.seeds(), Random(number)))
