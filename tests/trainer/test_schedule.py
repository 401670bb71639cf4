"""How the rate rises and falls, and what a setting that came later does to runs from before."""

import math
from dataclasses import replace

import pytest

from config import LATER, Config, validate
from data import load_scenes
from errors import UserError
from trainer import Trainer

TINY = Config(
    scenes=(64, 8), image_size=32, batch_size=16, epochs=4, dim=16, bottleneck=8, global_size=16,
    local_size=8, lr=1.6,
)  # fmt: skip
PEAK = 0.1  # 1.6 * 16 / 256


@pytest.fixture(scope="module")
def data():
    return load_scenes(64, 8, seed=0, size=32)


def rates(trainer: Trainer) -> list[float]:
    found = []
    for step in range(trainer.total_steps + 1):
        trainer.step = step
        found.append(trainer.set_lr())
        assert trainer.optimizer.param_groups[0]["lr"] == found[-1]
    return found


def test_the_rate_rises_to_its_peak_and_falls_to_0(data, tmp_path):
    """16 steps, of which 4 warm up."""
    found = rates(Trainer(replace(TINY, warmup_epochs=1), data, tmp_path))
    assert found[:5] == pytest.approx([0, PEAK / 4, PEAK / 2, 3 * PEAK / 4, PEAK])
    assert found[10] == pytest.approx(PEAK / 2)  # half way through the other 12
    assert found[16] == pytest.approx(0)
    assert found[4:] == sorted(found[4:], reverse=True)


def test_without_warm_up_the_rates_are_those_of_before(data, tmp_path):
    expected = [0.5 * 0.1 * (1 + math.cos(math.pi * step / 16)) for step in range(17)]
    assert rates(Trainer(TINY, data, tmp_path)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_epochs": -1}, "--warmup-epochs: got -1; want at least 0"),
        ({"warmup_epochs": 4}, "--warmup-epochs: got 4; want fewer than --epochs 4"),
        ({"key_groups": 0}, "--key-groups: got 0; want at least 1"),
        ({"key_groups": 17}, "--key-groups: got 17; want at most 16, two of the 32 global crops"),
    ],
)
def test_slips(changes, message):
    with pytest.raises(UserError, match=message):
        validate(replace(TINY, **changes))
    validate(replace(TINY, warmup_epochs=3, key_groups=16))


def test_a_checkpoint_from_before_a_setting_goes_on(data, tmp_path):
    """It has no word of it, and was trained as the default says."""
    config = replace(TINY, epochs=1)
    trainer = Trainer(config, data, tmp_path)
    assert not LATER.keys() & trainer.comparable_config().keys()
    trainer.start()
    trainer.run()
    Trainer(config, data, tmp_path).resume()
    with pytest.raises(UserError, match="key_groups was 1, is 2"):
        Trainer(replace(config, key_groups=2), data, tmp_path).resume()


def test_the_defaults_of_later_settings_are_their_values_from_before():
    for name, value in LATER.items():
        assert getattr(Config(), name) == value
