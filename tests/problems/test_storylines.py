"""Storylines on an atmosphere whose warming is known in closed form: arms, what they are told, what is reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.physics import DRY_GAS_CONSTANT
from wind_jax.problems.registry import make_problem
from wind_jax.sphere import area_mean, coarsen, coarsening

OPTIONS = {"context": 1, "leads": 4, "kelvin": 2.0, "factor": 2, "error": 0.1}


def of(x, name, s):
    return x[..., [c.name == name for c in s.store.channels]]


@pytest.fixture(scope="module")
def problem(setting):
    return make_problem(setting, "warming", **OPTIONS)


def test_each_event_has_four_arms_of_one_noise(problem):
    assert problem.arms == 2 * ["control", "anchored", "free", "storyline"]
    assert [problem.guided(case) for case in range(8)] == 2 * [False, True, False, True]
    assert [problem.event(case) for case in range(8)] == 4 * [0] + 4 * [1]
    np.testing.assert_array_equal(problem.starts[::4], problem.starts[3::4])
    assert problem.starts[0] != problem.starts[4]
    assert problem.windows == 2
    assert not problem.scored


def test_the_warmer_arms_are_the_event_and_2_kelvin(problem, setting):
    """T + 2 K, q by d ln e_s / dT of Bolton (1980), and layers thicker by R dT_v d ln p; the others are untouched."""
    event = setting.store.read(int(problem.starts[4]), 5)
    for case in (4, 5):
        np.testing.assert_array_equal(problem.states(case, 0, 5), event)
    for case in (6, 7):
        warm = problem.states(case, 0, 5)
        for name in ("temperature", "2m_temperature"):
            np.testing.assert_allclose(of(warm - event, name, setting), 2.0, atol=1e-3)
        ratio = of(warm, "specific_humidity", setting) / of(event, "specific_humidity", setting)
        np.testing.assert_allclose(ratio, np.exp(2 * 17.67 * 243.5 / (271 - 29.65) ** 2), rtol=0.01)
        lifted = of(warm - event, "geopotential", setting)
        virtual = lambda x: of(x, "temperature", setting) * (1 + 0.6078 * of(x, "specific_humidity", setting))
        thicker = DRY_GAS_CONSTANT * (virtual(warm) - virtual(event)).mean(-1) * np.log(850 / 500)
        np.testing.assert_allclose(lifted[..., 0] - lifted[..., 1], thicker, rtol=2e-3)
        for name in ("mean_sea_level_pressure", "10m_u_component_of_wind", "total_precipitation_6hr"):
            np.testing.assert_array_equal(of(warm, name, setting), of(event, name, setting))


def test_windows_are_told_the_large_scale_of_their_own_frames(problem, setting):
    """Of window 1, which begins with frame 2 of the event: zero residual at the warmer event, -2 K at the event."""
    observation = problem.observe(problem.told(3, 1))
    normal = lambda x: jnp.asarray(setting.prior.statistics.normalize(x))
    y_hat = observation.operator(normal(problem.states(3, 2, 3)))
    residual = jax.tree.map(lambda y, a: np.asarray(y - a), observation.y, y_hat)
    errors = jax.tree.map(lambda r, v: float(abs(r / np.sqrt(v)).max()), residual, observation.variance)
    assert max(errors.values()) < 0.01
    event = problem.states(0, 2, 3)
    cold = observation.y["temperature"] - observation.operator(normal(event))["temperature"]
    np.testing.assert_allclose(cold, 2.0, atol=0.01)
    cells = coarsening(setting.prior.grid, 2)
    expected = np.asarray(coarsen(of(event, "temperature", setting), cells)).reshape(3, -1, 2)
    np.testing.assert_allclose(observation.y["temperature"], expected + 2, atol=0.01)
    std = setting.prior.statistics.std[:2]
    np.testing.assert_allclose(observation.variance["temperature"], (0.1 * std) ** 2, rtol=1e-5)


def test_the_report_tells_a_kept_from_a_lost_signal(problem, setting):
    """Beside their own controls a free run keeps half of the warming, a storyline all, with 14 % more rain: 7 %/K."""
    rain = [c.name == "total_precipitation_6hr" for c in setting.store.channels]

    def posterior(case):
        control, warm = (problem.states(4 * (case // 4) + arm, 1, 4) for arm in (0, 3))
        x = control + (0.0, 0.25, 0.5, 1.25)[case % 4] * (warm - control)
        x[..., rain] *= (1.0, 2.0, 1.0, 2.28)[case % 4]
        return np.stack([x - 1e-3 * x, x + 1e-3 * x])  # two members about it

    said, lines = problem.report(posterior)
    assert [(r["case"], r["arm"]) for r in said["storylines"]] == [
        (i, a) for i in (0, 1) for a in ("free", "storyline")
    ]
    for record, share, scaling in zip(said["storylines"], (0.5, 1.0) * 2, (0.0, 7.0) * 2, strict=True):
        assert record["lead_hours"] == [6, 12, 18, 24]
        for key in ("temperature_850", "specific_humidity_500", "2m_temperature"):
            np.testing.assert_allclose(record["signal_kept"][key], share, atol=5e-3)
        assert "mean_sea_level_pressure" not in record["signal_kept"]  # nothing was imposed on it
        assert record["precipitation_percent_per_kelvin"] == pytest.approx(scaling, abs=0.01)
        assert record["clausius_clapeyron_percent_per_kelvin"] == pytest.approx(7.0, abs=0.8)
    assert len(lines) == 4
    assert "storyline: of the warming of temperature_850, 100% is kept at 6 h" in lines[1]
    assert "precipitation +7.0 %/K" in lines[1]


def test_a_box_is_warmed_and_observed_alone(setting):
    box = OPTIONS | {"latitude": (30.0, 90.0), "longitude": (0.0, 150.0)}
    problem = make_problem(setting, "warming", **box)
    change = of(problem.states(2, 0, 1) - problem.states(0, 0, 1), "temperature", setting)[0, ..., 0]
    inside = (setting.prior.grid.latitude > 30)[:, None] & (setting.prior.grid.longitude <= 150)[None, :]
    np.testing.assert_allclose(change, np.where(inside, 2.0, 0.0), atol=1e-3)
    assert area_mean(change, setting.prior.grid) == pytest.approx(
        2 * (1 - 0.5) / 2 / 2, rel=1e-3
    )  # north of 30 degrees, half
    assert problem.observe(problem.told(3, 0)).y["temperature"].shape == (3, 3, 2)  # of 3 x 6 coarse cells


def test_an_adaptive_variance_is_honoured(setting):
    problem = make_problem(setting._replace(variance="adaptive"), "warming", **OPTIONS)
    assert problem.observe(problem.told(3, 0)).variance == "adaptive"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kelvin": 0.0}, "other than 0 K"),
        ({"kelvin": {"500": 2.0, "850": 0.0}}, "other than 0 K"),
        ({"context": 0}, "got 0"),
        ({"leads": 40}, "no window of 41 frames"),
        ({"factor": 5}, "cannot be coarsened by 5"),
        ({"latitude": (-95.0, 0.0)}, "No region"),
        ({"variables": ("ozone",)}, "ozone"),
        ({"error": 0.0}, "must be positive"),
        ({"error": -0.1}, "must be positive"),
        ({"kelvin": 30.0}, "got 30"),
        ({"kelvin": {"700": 2.0}}, r"names \[700\]"),
    ],
)
def test_bad_storylines_are_named(setting, options, message):
    def observe():
        problem = make_problem(setting, "warming", **OPTIONS | options)
        problem.observe(problem.told(3, 0))

    with pytest.raises(ValueError, match=message):
        observe()


def test_a_storyline_needs_ground_and_rain(setting):
    with pytest.raises(ValueError, match="weather has none"):
        make_problem(setting._replace(surface_geopotential=None), "warming", **OPTIONS)
