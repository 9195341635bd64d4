"""The table of channels: its order, and what it refuses."""

import itertools

import pytest

from wind_jax.data.variables import LEVELS, PRESSURE_VARIABLES, SURFACE_VARIABLES, channel, channels


def test_all_channels_are_those_of_era5():
    every = channels()
    assert len(every) == 5 * 13 + 5 == len(set(every))
    expected = [*itertools.product(PRESSURE_VARIABLES, LEVELS), *((name, None) for name in SURFACE_VARIABLES)]
    assert [(c.name, c.level) for c in every] == expected
    assert [c.key for c in every if c.transform == "log_precipitation"] == ["total_precipitation_6hr"]


def test_order_does_not_depend_on_the_request():
    names, levels = ["2m_temperature", "geopotential", "temperature"], [850, 500, 850]
    keys = ["temperature_500", "temperature_850", "geopotential_500", "geopotential_850", "2m_temperature"]
    for order in itertools.permutations(names):
        assert [c.key for c in channels(order, levels)] == keys


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["temprature"],), "unknown variable 'temprature'"),
        (("temperature",), "list of names"),
        ((["temperature"], [-1]), "got -1"),
        ((["temperature"], []), "no channel"),
        (([],), "no channel"),
    ],
)
def test_channels_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        channels(*arguments)


def test_channel_rejects():
    with pytest.raises(ValueError, match="surface field"):
        channel("2m_temperature", 500)
    with pytest.raises(ValueError, match="needs a pressure level"):
        channel("temperature")
    with pytest.raises(ValueError, match="unknown variable 'ozone'"):
        channel("ozone", 500)
