"""Every mixer that stands in its folder keeps the whole contract, and every planted fault is noticed."""

import pytest
import torch

from fairway.core.config import Slot
from fairway.model.parts import NO_CONTEXT, MixerConfig
from laws import building
from laws.mixers import STATE_FAULTS, WIDTH, Faulty, UnfilledGain, check_laws, check_mixer, sample, site
from laws.state import check_isolation, check_state_bytes, runner

SLOT = Slot("fairway.model.mixer", "attention", pattern=True)


def default(kind: str) -> MixerConfig:
    config = SLOT.config(kind)(kind=kind)
    assert isinstance(config, MixerConfig)
    return config


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_every_mixer_keeps_its_contract(kind: str) -> None:
    check_mixer(default(kind), flops_range=(0.2, 3.0))


@pytest.mark.parametrize("fault", STATE_FAULTS)
@pytest.mark.parametrize("kind", SLOT.kinds())
def test_a_fault_planted_into_any_mixer_is_noticed(kind: str, fault: str) -> None:
    mixer = building.built(lambda: default(kind).build(WIDTH, site()))
    with pytest.raises(AssertionError):
        check_laws(Faulty(mixer, fault))


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_ignored_documents_are_noticed(kind: str) -> None:
    if not default(kind).isolates_documents():
        pytest.skip("this mixer does not claim to isolate documents")
    mixer = building.built(lambda: default(kind).build(WIDTH, site()))
    with pytest.raises(AssertionError, match="a document after another"):
        check_isolation(Faulty(mixer, "ignored documents"), sample(), NO_CONTEXT, 9)


@pytest.mark.parametrize("kind", SLOT.kinds())
def test_miscounted_state_bytes_are_noticed(kind: str) -> None:
    mixer = Faulty(building.built(lambda: default(kind).build(WIDTH, site())), "miscounted state")
    with pytest.raises(AssertionError, match="state_bytes"):
        check_state_bytes(mixer, runner(mixer, sample(batch=1), NO_CONTEXT), (3,))


def test_a_parameter_without_role_or_filling_is_noticed() -> None:
    with pytest.raises(AssertionError, match="not filled"):
        building.check_card(lambda: UnfilledGain(torch.nn.Identity()))


def test_a_tensor_kept_outside_parameters_is_noticed() -> None:
    module = torch.nn.Identity()
    module.table = torch.zeros(3)
    with pytest.raises(AssertionError, match="no parameters"):
        building.check_holds_no_tensors(module)
