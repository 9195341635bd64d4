"""What a run says of how real its states are."""

import numpy as np
import pytest

from wind_jax.evaluation.realism import realism
from wind_jax.problems.diagnosis import realism_record


def test_realism_is_the_mean_over_frames_and_trajectories(setting):
    """Sizes: a drift that has either sign does not cancel. The layer that lies below the ground is left out."""
    channels, grid, ground = setting.store.channels, setting.prior.grid, setting.surface_geopotential
    x = setting.store.read(0, 8).reshape(2, 4, *grid.shape, len(channels))[:, [1, 0, 2, 3]]  # not from the lightest on
    of = lambda x, before=None: ((one, before) for one in x)
    found = realism_record("truth", of(x), channels, grid, ground)
    each = realism(x, channels, grid, ground)
    assert found["of"] == "truth"
    assert found["hydrostatic_residual, 850 hPa (K)"] == pytest.approx(each["hydrostatic_residual", 850].mean())
    assert found["implied_evaporation (kg m-2 day-1)"] == pytest.approx(
        np.abs(each["implied_evaporation", None][:, 1:]).mean()
    )
    drift = each["dry_air_mass_drift", None]
    assert found["dry_air_mass_drift (1)"] == pytest.approx(np.abs(drift).mean())
    assert np.abs(drift.mean()) < np.abs(drift).mean()
    after = realism_record("x", of(x[:, 1:], x[0, 0]), channels, grid, ground)
    mass = realism(x, channels, grid, ground)["dry_air_mass", None]
    assert after["dry_air_mass_drift (1)"] == pytest.approx(np.abs(mass[:, 1:] / mass[0, 0] - 1).mean(), rel=1e-5)
    under = realism_record("x", of(x), channels, grid, np.full(grid.shape, 1e6))
    assert "hydrostatic_residual, 850 hPa (K)" not in under
