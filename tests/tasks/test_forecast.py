"""Forecast windows: how many, when, and which frames are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.tasks.forecast import known_window, lead_times, window_count


@pytest.mark.parametrize(
    ("leads", "frames", "context", "windows"), [(20, 5, 1, 5), (20, 5, 2, 7), (1, 5, 4, 1), (6, 4, 1, 2)]
)
def test_windows_cover_the_leads_and_no_more(leads, frames, context, windows):
    assert window_count(leads, frames, context) == windows
    assert (windows - 1) * (frames - context) < leads <= windows * (frames - context)


def test_leads_are_six_hours_apart():
    assert (lead_times(4) / np.timedelta64(1, "h")).tolist() == [6, 12, 18, 24]


def test_known_frames_come_first():
    known = jnp.arange(1.0, 9).reshape(2, 2, 1, 2, 1)
    window = known_window(known, 5)
    assert window.shape == (2, 5, 1, 2, 1)
    np.testing.assert_array_equal(window[:, :2], known)
    assert not window[:, 2:].any()


@pytest.mark.parametrize(("leads", "context", "named"), [(0, 1, "0"), (4, 0, "got 0"), (4, 5, "got 5")])
def test_bad_input(leads, context, named):
    with pytest.raises(ValueError, match=named):
        window_count(leads, 5, context)
