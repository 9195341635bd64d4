"""Channels: their order, the lexicon and what it refuses, datasets to arrays and back, files that carry definitions."""

import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import synthetic
import xarray
from flax import nnx

from wind_jax.channels import (
    LEVELS,
    LEXICON,
    PAPER,
    Channel,
    Variable,
    channels,
    index,
    levels_of,
    lexicon,
    positions,
    stack,
    unstack,
)
from wind_jax.data.climatology import Climatology, fit_climatology
from wind_jax.data.normalize import Statistics, compute_statistics
from wind_jax.data.store import STATE, open_store
from wind_jax.embedded import embedded
from wind_jax.evaluation.kriging import Covariance
from wind_jax.model.uvit import UViT, UViTConfig
from wind_jax.prior import Prior, load_prior, pure_params, save_prior
from wind_jax.sphere import Grid

ON_LEVELS = ("temperature", "geopotential", "specific_humidity", "u_component_of_wind", "v_component_of_wind")
OZONE = {"units": "kg kg-1", "on_levels": True, "non_negative": True, "long_name": "ozone"}
SNOW = {"units": "m", "on_levels": False, "standard_name": "lwe_thickness_of_surface_snow_amount"}
OWN = lexicon({"ozone": OZONE, "snow_depth": SNOW})


def test_channels_are_by_default_those_of_the_paper():
    every = channels()
    assert len(every) == 5 * 13 + 5 == len(set(every))
    expected = [*itertools.product(ON_LEVELS, LEVELS), *((name, None) for name in PAPER[5:])]
    assert [(c.name, c.level) for c in every] == expected
    assert [c.key for c in every if c.transform == "log_precipitation"] == ["total_precipitation_6hr"]
    assert channels(OWN, lexicon=OWN) != every == channels(lexicon=OWN)


def test_surface_pressure_is_a_channel():
    chosen = channels(["surface_pressure", "10m_u_component_of_wind", "mean_sea_level_pressure", "temperature"], [500])
    keys = ["temperature_500", "mean_sea_level_pressure", "surface_pressure", "10m_u_component_of_wind"]
    assert [c.key for c in chosen] == keys
    attributes = {"units": "Pa", "standard_name": "surface_air_pressure", "long_name": "surface pressure"}
    assert chosen[2].variable.attributes() == attributes


def test_order_does_not_depend_on_the_request():
    names, levels = ["2m_temperature", "geopotential", "temperature"], [850, 500, 850]
    keys = ["temperature_500", "temperature_850", "geopotential_500", "geopotential_850", "2m_temperature"]
    for order in itertools.permutations(names):
        assert [c.key for c in channels(order, levels)] == keys


def test_variables_of_a_config():
    chosen = channels(["snow_depth", "ozone", "2m_temperature", "temperature"], [50, 100], OWN)
    assert [c.key for c in chosen] == [
        *("temperature_50", "temperature_100", "ozone_50", "ozone_100", "2m_temperature", "snow_depth")
    ]
    assert [c.non_negative for c in chosen] == [False, False, True, True, False, False]
    celsius = lexicon({"temperature": {"units": "degC", "on_levels": True}})
    assert list(celsius) == list(LEXICON)
    assert channels(["temperature"], [500], celsius)[0].units == "degC"
    assert channels(["temperature"], [500], celsius) != channels(["temperature"], [500])
    assert "ozone" not in LEXICON


def test_equality_is_by_definition():
    variable = lambda **changes: Variable.from_dict("ozone", OZONE | changes)
    assert Channel(variable(), 50) == Channel(variable(long_name="O3"), 50)
    for changes in ({"units": "g kg-1"}, {"non_negative": False}, {"accumulation": True}):
        assert Channel(variable(), 50) != Channel(variable(**changes), 50)


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ({"on_levels": True}, "'ozone' has no units"),
        (OZONE | {"units": " "}, "'ozone' has no units"),
        ({"units": "K"}, "'ozone' has no on_levels"),
        (OZONE | {"transform": "log"}, "'ozone' has the transform 'log'; expected one of none, log_precipitation"),
        (OZONE | {"unit": "K"}, r"'ozone' has the entries \['unit'\]; expected some of units, on_levels"),
        (OZONE | {"units": 1}, "units of the variable 'ozone' must be text, got 1"),
        (OZONE | {"on_levels": "yes"}, "on_levels of the variable 'ozone' must be True or False, got 'yes'"),
        ("kg kg-1", "'ozone' must be defined by units"),
    ],
)
def test_lexicon_refuses(definition, message):
    with pytest.raises(ValueError, match=message):
        lexicon({"ozone": definition})


def test_lexicon_refuses_names():
    for name in ("", "o/zone"):
        with pytest.raises(ValueError, match=f"a name without slashes, got '{name}'"):
            lexicon({name: OZONE})


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
def test_channels_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        channels(*arguments)


def test_a_level_must_suit_the_variable():
    with pytest.raises(ValueError, match="surface field"):
        Channel(LEXICON["2m_temperature"], 500)
    with pytest.raises(ValueError, match="needs a pressure level"):
        Channel(LEXICON["temperature"])


def test_json_carries_the_definition():
    for channel in (*channels(), *channels(["ozone", "snow_depth"], [50], OWN)):
        again = Channel.from_dict(json.loads(json.dumps(channel.to_dict())))
        assert again == channel
        assert again.variable.attributes() == channel.variable.attributes()
    with pytest.raises(ValueError, match="unknown variable 'ozone'"):
        Channel.from_dict(["ozone", 50])
    with pytest.raises(ValueError, match=r"lacks \['level'\]"):
        Channel.from_dict({"name": "ozone", **OZONE})


def test_places_on_the_axis():
    chosen = channels(["ozone", "snow_depth", "temperature"], [100, 50], OWN)[::-1]
    assert [index(chosen, c.name, c.level) for c in chosen] == list(range(5))
    assert {name: where.tolist() for name, where in positions(chosen).items()} == {
        **{"snow_depth": [0], "ozone": [1, 2], "temperature": [3, 4]}
    }
    assert levels_of(chosen, "ozone") == levels_of(chosen) == [50, 100]
    assert levels_of(chosen, "snow_depth") == levels_of(chosen, "absent") == []
    with pytest.raises(ValueError, match="no channel 'ozone_500'; the channels are snow_depth, ozone_100"):
        index(chosen, "ozone", 500)


def dataset(n: int = 8) -> xarray.Dataset:
    """All of the lexicon, and two variables of a config."""
    data = synthetic.fields(synthetic.times(n))
    data["ozone"] = 1e-3 * data["specific_humidity"]
    data["snow_depth"] = 10 * data["total_precipitation_6hr"]
    return data


def test_stack_and_unstack_are_inverse():
    data = dataset()
    chosen = channels(OWN, synthetic.LEVELS, OWN)
    grid, times = Grid(synthetic.LATITUDE, synthetic.LONGITUDE), data["time"].values
    array = stack(data, chosen)
    assert array.shape == (8, *grid.shape, 6 * 3 + 7)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array[..., index(chosen, "ozone", 500)], data["ozone"].sel(level=500).values)
    # Whatever the order of levels, rows, dimensions and channels.
    other = data.isel(latitude=slice(None, None, -1), level=[2, 0, 1]).transpose("longitude", "level", "latitude", ...)
    np.testing.assert_array_equal(stack(other, chosen), array)
    order = np.random.default_rng(0).permutation(len(chosen))
    back = unstack(array[..., order], [chosen[i] for i in order], grid, times)
    for name in OWN:
        dims = ("time", "level", "latitude", "longitude") if OWN[name].on_levels else ("time", "latitude", "longitude")
        assert back[name].dims == dims
        np.testing.assert_array_equal(back[name], data[name])
        assert back[name].attrs["units"] == OWN[name].units
    assert back["total_precipitation_6hr"].attrs["cell_methods"] == "time: sum"
    assert back["snow_depth"].attrs["long_name"] == "snow depth"
    np.testing.assert_array_equal(stack(back, chosen), array)


def test_unstack_leaves_levels_without_a_value_missing():
    chosen = (Channel(LEXICON["temperature"], 500), Channel(OWN["ozone"], 50))
    grid = Grid(synthetic.LATITUDE, synthetic.LONGITUDE)
    back = unstack(np.ones((1, *grid.shape, 2), np.float32), chosen, grid, synthetic.times(1))
    assert back["temperature"].notnull().all(["time", "latitude", "longitude"]).values.tolist() == [False, True]
    assert back["ozone"].notnull().all(["time", "latitude", "longitude"]).values.tolist() == [True, False]


def test_stack_refuses():
    data, chosen = dataset(2), channels(["temperature", "2m_temperature"], [500])
    with pytest.raises(ValueError, match="no variable 'temperature'; it has"):
        stack(data.drop_vars("temperature"), chosen)
    with pytest.raises(ValueError, match="no level 400 hPa of 'temperature'"):
        stack(data, channels(["temperature"], [400]))
    with pytest.raises(ValueError, match="'2m_temperature' has the dimensions"):
        stack(data.assign({"2m_temperature": data["2m_temperature"].isel(time=0)}), chosen)
    with pytest.raises(ValueError, match="of shape"):
        unstack(stack(data, chosen), chosen[:1], Grid(synthetic.LATITUDE, synthetic.LONGITUDE), data["time"].values)


def test_files_of_before_load(tmp_path):
    """They name channels by pairs of name and level."""
    chosen = channels(["temperature", "total_precipitation_6hr"], [500])
    pairs = [[c.name, c.level] for c in chosen]
    packaged = json.loads(Path(embedded("covariance.json")).read_text())
    names = [[c.name, c.level] for c in Covariance.load(embedded("covariance.json")).channels]
    (tmp_path / "covariance.json").write_text(json.dumps(packaged | {"channels": names}))
    older = Covariance.load(tmp_path / "covariance.json")
    assert older.channels == load_prior(embedded("prior.npz")).statistics.channels
    statistics = Statistics(chosen, np.zeros(2), np.ones(2), np.ones(2))
    assert Statistics.from_dict(statistics.to_dict() | {"channels": pairs}).channels == chosen
    grid = Grid(synthetic.LATITUDE, synthetic.LONGITUDE)
    packed = Climatology(chosen, grid, np.zeros((7, *grid.shape, 2), np.float32)).pack()
    assert Climatology.unpack(packed | {"channels": np.array(json.dumps(pairs))}).channels == chosen


@pytest.fixture(params=["variables", "not consolidated", "prepared"])
def archive(request, tmp_path):
    """One with variables of a config, in each layout."""
    data, path = dataset(1500), tmp_path / "archive.zarr"
    if request.param == "prepared":
        chosen = channels(["temperature", "ozone", "snow_depth"], [500, 850], OWN)[::-1]
        keys = [c.key for c in chosen]
        state = xarray.DataArray(
            stack(data, chosen), data["2m_temperature"].coords, (*data["2m_temperature"].dims, "channel")
        )
        data = data[["land_sea_mask"]].assign({STATE: state.assign_attrs(channels=keys)})
    return dataset(1500), synthetic.write(data, path, time_chunk=500, consolidated=request.param != "not consolidated")


def test_variables_of_a_config_from_archive_to_prior(archive, tmp_path):
    data, path = archive
    chosen = channels(["ozone", "snow_depth", "temperature"], [500], OWN)
    store = open_store(path, chosen)
    np.testing.assert_array_equal(store.read(3, 2), stack(data, chosen)[3:5])
    statistics, climatology = compute_statistics(store), fit_climatology(store)
    grid = store.grid
    config = UViTConfig(
        channels=3, latitude=grid.shape[0], longitude=grid.shape[1], forcings=13, widths=(32,), blocks=("res",), depth=1
    )
    params = pure_params(nnx.state(UViT(config, rngs=nnx.Rngs(0)), nnx.Param))
    save_prior(
        tmp_path / "prior.npz", Prior(params, config, statistics, grid, 2, "rectified", "x0", climatology=climatology)
    )
    prior = load_prior(tmp_path / "prior.npz")
    assert prior.statistics.channels == prior.climatology.channels == chosen
    assert [c.variable.attributes() for c in prior.statistics.channels] == [c.variable.attributes() for c in chosen]
    states = store.read(0, 4)
    again = prior.statistics.denormalize(prior.statistics.normalize(states))
    np.testing.assert_allclose(again, states, rtol=1e-4, atol=1e-9)
    negative = prior.statistics.physical(jax.numpy.full((1, 3), -100.0))
    assert (np.asarray(negative)[0] == 0).tolist() == [c.name == "ozone" for c in chosen]
