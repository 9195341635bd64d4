"""evaluate: brute force on hand-made files, in any chunks and orientation; what cannot be compared is refused."""

import json
import re
from itertools import combinations, product

import numpy as np
import pandas
import pytest
import xarray

from wind_jax import evaluate
from wind_jax.channels import channels
from wind_jax.data.climatology import HARMONICS, Climatology
from wind_jax.data.forecast_file import ForecastFile
from wind_jax.sphere import Grid

LATITUDE, LONGITUDE = np.arange(-80.0, 81, 20), np.arange(0, 360, 30.0)
EDGES = np.deg2rad([-90, -70, -50, -30, -10, 10, 30, 50, 70, 90])
STARTS = pandas.date_range("2000-02-28", periods=3, freq="12h")
LEADS = pandas.to_timedelta([6, 12, 18], unit="h")
TIMES = pandas.date_range("2000-02-28", periods=12, freq="6h")
LEVELS = [500, 850]
UNITS = {"geopotential": "m2 s-2", "2m_temperature": "K"}
rng = np.random.default_rng(0)


def dataset(leading: dict, units=UNITS, spread=1.0) -> xarray.Dataset:
    """Random fields about a mean, over some leading dimensions."""
    coords = {**leading, "level": LEVELS, "latitude": LATITUDE, "longitude": LONGITUDE}
    data = xarray.Dataset(coords=coords)
    for name, mean in (("geopotential", 50.0), ("2m_temperature", 280.0)):
        dims = [d for d in coords if not (d == "level" and name == "2m_temperature")]
        x = mean + spread * rng.normal(size=[len(coords[d]) for d in dims])
        data[name] = xarray.Variable(dims, x.astype(np.float32), {"units": units[name]})
    return data


def save(data: xarray.Dataset, path, **chunks) -> str:
    """Writes whole arrays, or chunks along some dimensions."""
    sizes = {name: [chunks.get(d, n) for d, n in array.sizes.items()] for name, array in data.items()}
    encoding = {name: {"chunks": tuple(size)} for name, size in sizes.items()}
    data.to_zarr(path, zarr_format=2, consolidated=True, encoding=encoding)
    return str(path)


FORECAST = dataset({"number": [0, 1, 2, 3], "time": STARTS, "prediction_timedelta": LEADS})
TRUTH = dataset({"time": TIMES})
NORMAL = dataset({"hour": [0, 6, 12, 18], "dayofyear": np.arange(1, 367)}, spread=0.1)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Files of one content, in unlike layouts: chunks, direction of latitude, longitudes of either kind."""
    folder = tmp_path_factory.mktemp("files")
    truth = TRUTH.isel(latitude=slice(None, None, -1)).assign_coords(longitude=(LONGITUDE + 180) % 360 - 180)
    truth = truth.sortby("longitude").transpose("time", "level", "longitude", "latitude").astype(np.float64)
    for name, unit in (("geopotential", "m**2/s**2"), ("2m_temperature", "K")):
        truth[name].attrs["units"] = unit
    return {
        "forecast": save(FORECAST, folder / "made.zarr", prediction_timedelta=2, time=1),
        "truth": save(truth, folder / "truth.zarr"),
        "climatology": save(NORMAL, folder / "climatology.zarr"),
    }


def run(paths, *more, **other):
    """Records and rank histograms."""
    files = {**paths, **other}
    argv = [part for name, path in files.items() if path for part in (f"--{name}", path)]
    return evaluate.evaluate(evaluate.parse([*argv, *more]))


def score(paths, *more, **other) -> dict[tuple, dict]:
    """Records by what tells them apart."""
    found, _ = run(paths, *more, **other)
    keys = [(r["region"], r["variable"], r["level"], r["lead_hours"], r["metric"]) for r in found]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, found))


# -------------------------------------------------------------------------------------------------------- brute force
BOXES = {
    "global": (lambda phi: True, lambda lam: True),
    "tropics": (lambda phi: abs(phi) <= 20, lambda lam: True),
    "europe": (lambda phi: 35 <= phi <= 75, lambda lam: lam in (0, 30)),
    "pacific": (lambda phi: -45 <= phi <= 10, lambda lam: lam in (150, 180, 210)),
    "extra-tropics": (lambda phi: abs(phi) >= 20, lambda lam: True),
    "polar": (lambda phi: abs(phi) >= 60, lambda lam: True),
}
REGIONS = ("--regions", "global", "tropics", "europe", "pacific=-45:10:150:-150", "extra-tropics",
           "polar=60:90:0:360,-90:-60:0:360")  # fmt: skip


def brute_force(ensembles, truths, normals, region):
    """Every metric of ensembles (case, member, h, w) of one field at one lead time, in plain float64 loops."""
    rows, columns = BOXES[region]
    area = np.diff(np.sin(EDGES))
    inside = [(i, j) for i in range(9) for j in range(12) if rows(LATITUDE[i]) and columns(LONGITUDE[j])]
    mean = lambda field: sum(area[i] * field[i, j] for i, j in inside) / sum(area[i] for i, j in inside)
    per_case = {name: [] for name in ("mse", "bias", "mae", "acc", "crps", "energy", "variance")}
    spectra = []
    for x, y, normal in zip(*(np.asarray(field, float) for field in (ensembles, truths, normals))):
        m, center = len(x), x.mean(0)
        pairs = list(combinations(range(m), 2))
        apart = sum(abs(x[i] - x[j]) for i, j in pairs) / len(pairs)
        per_case["mse"].append(mean((center - y) ** 2))
        per_case["bias"].append(mean(center - y))
        per_case["mae"].append(mean(abs(center - y)))
        a, b = center - normal, y - normal
        per_case["acc"].append(mean(a * b) / np.sqrt(mean(a**2) * mean(b**2)))
        per_case["crps"].append(mean(sum(abs(x[i] - y) for i in range(m)) / m - apart / 2))
        norm = lambda field: np.sqrt(mean(field**2))
        energy = sum(norm(x[i] - y) for i in range(m)) / m
        per_case["energy"].append(energy - sum(norm(x[i + 1] - x[i]) for i in range(m - 1)) / (m - 1) / 2)
        per_case["variance"].append(mean(sum((x[i] - center) ** 2 for i in range(m)) / (m - 1)))
        power = lambda field: [
            sum(
                area[i] * np.cos(np.deg2rad(LATITUDE[i])) * abs(np.fft.fft(field[i])[k]) ** 2
                for i in {i for i, _ in inside}
            )
            for k in range(1, len(LONGITUDE) // 2 + 1)
        ]
        spectra.append([np.mean([power(member) for member in x], axis=0), power(y)])
    pooled = {name: np.mean(values) for name, values in per_case.items()}
    values = {name: pooled[name] for name in ("bias", "mae", "acc", "crps")} | {
        "rmse": np.sqrt(pooled["mse"]),
        "energy_score": pooled["energy"],
        "spread": np.sqrt(pooled["variance"]),
        "spread_skill_ratio": np.sqrt((m + 1) / m * pooled["variance"] / pooled["mse"]),
        "debiased_mse": pooled["mse"] - pooled["variance"] / m,
        "debiased_rmse": np.sqrt(max(pooled["mse"] - pooled["variance"] / m, 0)),
    }
    if region not in ("europe", "pacific"):
        s_f, s = np.mean(spectra, axis=0)
        values["log_spectral_distance"] = np.sqrt(np.mean((10 * np.log10(s_f / s)) ** 2))
        s_f, s = s_f / s_f.sum(), s / s.sum()
        values["spectral_divergence"] = (s * np.log(s / s_f)).sum()
    return values


def test_every_score_equals_brute_force(paths):
    found = score(paths, *REGIONS)
    expected = {}
    for region in BOXES:
        for name, level, lead in [
            (n, lv, t) for n in UNITS for lv in ([None] if n[0] == "2" else LEVELS) for t in LEADS
        ]:
            pick = lambda data: data[name] if level is None else data[name].sel(level=level)  # noqa: B023
            x = pick(FORECAST).sel(prediction_timedelta=lead).transpose("time", "number", ...).values
            valid = STARTS + lead
            normal = [pick(NORMAL).sel(hour=t.hour, dayofyear=t.day_of_year).values for t in valid]
            values = brute_force(x, pick(TRUTH).sel(time=valid).values, normal, region)
            hours = int(lead / pandas.Timedelta("1h"))
            expected |= {(region, name, level, hours, metric): value for metric, value in values.items()}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # Fields of 280 K are float32, to 3e-5 K.
        assert found[key]["value"] == pytest.approx(value, rel=2e-4, abs=2e-5), key
        assert (found[key]["cases"], found[key]["missing"], found[key]["method"]) == (3, 0, "made")
    units = {(key[1], key[4]): record["unit"] for key, record in found.items()}
    assert units["geopotential", "rmse"] == "m2 s-2"
    assert units["2m_temperature", "debiased_mse"] == "(K)2"
    assert units["2m_temperature", "acc"] == "1"


def values(found):
    return {key: record["value"] for key, record in found.items()}


def test_brier_score_equals_brute_force(paths):
    """(p - o)^2 - p (1 - p) / (M - 1), by cell and case, of two thresholds and of the variable that has them alone."""
    found = score(
        paths, "--regions", "global", "--metrics", "rmse", "--exceed", "geopotential=49", "geopotential=50.25"
    )
    lead, (area, m) = LEADS[1], (np.diff(np.sin(EDGES))[:, None], FORECAST.sizes["number"])
    for level in LEVELS:
        x = FORECAST["geopotential"].sel(prediction_timedelta=lead, level=level)
        x, y = x.transpose("time", "number", ...).values, TRUTH["geopotential"].sel(time=STARTS + lead, level=level)
        for threshold in (49.0, 50.25):
            p, o = (x > threshold).mean(1), y.values > threshold
            cell = (p - o) ** 2 - p * (1 - p) / (m - 1)
            record = found["global", "geopotential", level, 12, f"brier_above_{threshold:g}"]
            assert record["value"] == pytest.approx((cell * area).sum() / area.sum() / 12 / 3, abs=1e-6)
            assert record["unit"] == "1"
    assert not [key for key in found if key[1] == "2m_temperature" and "brier" in key[4]]


def test_rank_histograms_equal_brute_force(paths, tmp_path):
    """Cell by cell, with ties, a hole that does not count, and a case and a lead time that have no value."""
    forecast = FORECAST.round(0)  # of 50 +- 1: most cells have ties
    forecast["2m_temperature"][2, 0, 1, 3, :6] = np.nan
    forecast["2m_temperature"][:, 1, 2] = np.nan
    forecast["2m_temperature"][:, :, 0] = np.nan
    made = save(forecast, tmp_path / "made.zarr", prediction_timedelta=2)
    truth = save(TRUTH.round(0), tmp_path / "truth.zarr")
    with pytest.warns(UserWarning, match="2m_temperature at 6 h"):
        _, ranks = run(paths, *REGIONS, forecast=made, truth=truth)
    assert {name: array.sizes["rank"] for name, array in ranks.items()} == dict.fromkeys(UNITS, 5)
    assert "level" not in ranks["2m_temperature"].dims
    area = np.diff(np.sin(EDGES))
    for region, lead in product(("global", "europe", "polar"), LEADS):
        rows, columns = BOXES[region]
        inside = [(i, j) for i in range(9) for j in range(12) if rows(LATITUDE[i]) and columns(LONGITUDE[j])]
        for name, level in (("geopotential", 500), ("geopotential", 850), ("2m_temperature", None)):
            at = {} if level is None else {"level": level}
            cases = []
            for start in STARTS:
                x = forecast[name].sel(time=start, prediction_timedelta=lead, **at).values
                y = TRUTH.round(0)[name].sel(time=start + lead, **at).values
                share, total = np.zeros(5), 0.0
                for i, j in inside:
                    if np.isfinite(x[:, i, j]).all():
                        low, high = (x[:, i, j] < y[i, j]).sum(), (x[:, i, j] <= y[i, j]).sum()
                        share[low : high + 1] += area[i] / (high - low + 1)
                        total += area[i]
                cases += [share / total] if total else []
            expected = np.mean(cases, axis=0) if cases else np.full(5, np.nan)
            got = ranks[name].sel(region=region, prediction_timedelta=lead, **at)
            np.testing.assert_allclose(got, expected, atol=1e-6, err_msg=f"{region} {name} {level} {lead}")


def test_an_exchangeable_ensemble_has_a_flat_rank_histogram_and_a_narrow_one_a_u(tmp_path):
    """The truth is one more draw: of 5 ranks each has a fifth of 20 starts' cells, to four standard errors."""
    starts, rng = pandas.date_range("2000-01-01", periods=20, freq="6h"), np.random.default_rng(1)
    draws = rng.normal(size=(5, 20, 9, 12)).astype(np.float32)
    dims, coords = ("time", "latitude", "longitude"), {"time": starts, "latitude": LATITUDE, "longitude": LONGITUDE}
    units = {"units": "K"}
    truth = save(xarray.Dataset({"2m_temperature": (dims, draws[0], units)}, coords), tmp_path / "truth.zarr")
    area = np.broadcast_to(np.diff(np.sin(EDGES))[:, None], (9, 12))
    effective = 20 * area.sum() ** 2 / (area**2).sum()
    for width, flat in ((1.0, True), (0.5, False)):
        x = xarray.Dataset({"2m_temperature": (("number", *dims), width * draws[1:], units)}, coords)
        made = {"forecast": save(x, tmp_path / f"{width}.zarr"), "truth": truth}
        share = run(made, "--regions", "global")[1]["2m_temperature"].squeeze()
        assert float(share.sum()) == pytest.approx(1, abs=1e-6)
        assert (abs(share - 0.2).max() < 4 * np.sqrt(0.2 * 0.8 / effective)) == flat
        assert flat or share[[0, -1]].min() > 0.25


def test_rank_histograms_are_a_choice(paths):
    assert run(paths, "--metrics", "rmse")[1] == {}
    found, ranks = run(paths, "--metrics", "rmse", "rank_histogram", "--variables", "geopotential")
    assert {r["metric"] for r in found} == {"rmse"}
    assert ranks.keys() == {"geopotential"}
    with pytest.raises(ValueError, match="rank_histogram comes beside scores"):
        run(paths, "--metrics", "rank_histogram")


def test_streamed_equals_whole(paths, monkeypatch):
    sizes = []
    read = evaluate.Fields.read

    def spy(self, *arguments):
        sizes.append(read(self, *arguments).shape)
        return read(self, *arguments)

    monkeypatch.setattr(evaluate.Fields, "read", spy)
    whole = score(paths, "--variables", "geopotential")
    assert max(shape[1] for shape in sizes) == 3
    sizes.clear()
    monkeypatch.setattr(evaluate, "BLOCK_BYTES", 1)
    streamed = score(paths, "--variables", "geopotential")
    assert max(shape[1] for shape in sizes) == 2  # the file's chunk of lead times
    assert values(streamed) == pytest.approx(values(whole), rel=1e-5)


def test_choices_are_part_of_the_whole(paths):
    whole = score(paths)
    some = score(paths, "--variables", "geopotential", "--levels", "850", "--leads", "18", "--metrics", "rmse", "crps",
                 "--regions", "tropics")  # fmt: skip
    assert {key[1:] for key in some} == {("geopotential", 850, 18, "rmse"), ("geopotential", 850, 18, "crps")}
    assert all(record == whole[key] for key, record in some.items())
    later = score(paths, "--period", "2000-02-29", "2000-03-01", "--metrics", "bias")
    assert {record["cases"] for record in later.values()} == {1}


def test_truth_in_the_forecast_schema_is_the_same_truth(paths, tmp_path):
    valid = xarray.DataArray(STARTS.values[:, None] + LEADS.values[None, :], dims=("time", "prediction_timedelta"))
    truth = TRUTH.sel(time=valid.rename(time="start")).drop_vars("time").rename(start="time")
    truth = truth.assign_coords(time=STARTS, prediction_timedelta=LEADS)
    other = score(paths, truth=save(truth, tmp_path / "truth.zarr"))
    assert values(other) == pytest.approx(values(score(paths)), rel=1e-6)


def test_an_archive_is_a_forecast_of_lead_time_zero(paths):
    found = score({"forecast": paths["truth"], "truth": paths["truth"]}, "--metrics", "rmse", "bias", "mae")
    assert {key[3] for key in found} == {0}
    assert {record["value"] for record in found.values()} == {0.0}
    assert {record["cases"] for record in found.values()} == {len(TIMES)}


@pytest.mark.parametrize("kind", ["no dimension", "one member"])
def test_a_single_forecast(paths, tmp_path, kind):
    one = FORECAST.isel(number=0, drop=True) if kind == "no dimension" else FORECAST.isel(number=[0])
    path = save(one, tmp_path / "one.zarr")
    found = score(paths, forecast=path)
    assert {key[4] for key in found} == set(evaluate.scores.DETERMINISTIC)
    error = (one["2m_temperature"].squeeze() - 0).sel(prediction_timedelta=LEADS[0]).values - (
        TRUTH["2m_temperature"].sel(time=STARTS + LEADS[0]).values)  # fmt: skip
    weights = np.diff(np.sin(EDGES))[None, :, None]
    mae = (abs(error) * weights).sum() / (weights.sum() * error.shape[0] * error.shape[2])
    assert found["global", "2m_temperature", None, 6, "mae"]["value"] == pytest.approx(mae, rel=1e-5)
    assert run(paths, forecast=path)[1] == {}
    for metric in (*evaluate.scores.ENSEMBLE, "rank_histogram"):
        with pytest.raises(ValueError, match=rf"{metric} of the forecast .*one.zarr: it has one member"):
            score(paths, "--metrics", "rmse", metric, forecast=path)


def test_members_by_another_name(paths, tmp_path):
    path = save(FORECAST.rename(number="realization"), tmp_path / "made.zarr")
    assert score(paths, forecast=path) == score(paths)


def test_spectra_of_both_sides_are_of_the_same_fields(paths, tmp_path):
    """A perfect forecast has the spectrum of the truth, whichever of its starts is missing."""
    perfect = FORECAST.copy(deep=True)
    for name in UNITS:
        for start, lead in product(range(3), range(len(LEADS))):
            at = {"time": start, "prediction_timedelta": lead}
            perfect[name][at] = TRUTH[name].sel(time=STARTS[start] + LEADS[lead]).broadcast_like(perfect[name][at])
    perfect["2m_temperature"][{"time": 1}] = np.nan
    found = score(paths, "--regions", "global", forecast=save(perfect, tmp_path / "perfect.zarr"))
    for metric in ("log_spectral_distance", "rmse"):
        assert found["global", "2m_temperature", None, 12, metric]["value"] == pytest.approx(0, abs=1e-4)


def test_missing_values_are_masked_and_counted(paths, tmp_path):
    holes = FORECAST.copy(deep=True)
    holes["2m_temperature"][2, 0, 1, 3, :6] = np.nan  # half a circle of one member, in one of three starts
    holes["2m_temperature"][:, 1, 2] = np.nan  # a whole frame
    forecast = save(holes, tmp_path / "holes.zarr")
    found, full = score(paths, forecast=forecast), score(paths)
    key = ("global", "2m_temperature", None, 12)
    share = np.diff(np.sin(EDGES))[3] / 2 / 2
    for metric in ("rmse", "crps", "acc", "energy_score", "spread"):
        assert found[*key, metric]["missing"] == pytest.approx(share / 3, rel=1e-5)
        assert found[*key, metric]["cases"] == 3
        assert found[*key, metric]["value"] != full[*key, metric]["value"]
        lost = found["global", "2m_temperature", None, 18, metric]
        assert (lost["cases"], lost["missing"]) == (2, pytest.approx(1 / 3))
        assert found["global", "2m_temperature", None, 6, metric] == {
            **full["global", "2m_temperature", None, 6, metric], "method": "holes"}  # fmt: skip
    error = holes["2m_temperature"].mean("number", skipna=False) - 0
    squares = []
    for start in (0, 1, 2):
        e = error[start, 1].values - TRUTH["2m_temperature"].sel(time=STARTS[start] + LEADS[1]).values
        weights = np.where(np.isfinite(e), np.diff(np.sin(EDGES))[:, None], 0)
        squares.append((weights * np.nan_to_num(e) ** 2).sum() / weights.sum())
    assert found[*key, "rmse"]["value"] == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)
    holes["2m_temperature"][:, :, 2] = np.nan  # a lead time of every start
    with pytest.warns(UserWarning, match=r"6 of the fields have no score.*: 2m_temperature at 18 h, global; "):
        left = score(paths, forecast=save(holes, tmp_path / "lead.zarr"))
    assert ("global", "2m_temperature", None, 18, "rmse") not in left
    holes["geopotential"][..., 0, :, :] = np.nan
    with pytest.raises(
        ValueError, match=r"forecast .*none.zarr and the truth .* no values in common of .*potential_500"
    ):
        score(paths, forecast=save(holes, tmp_path / "none.zarr"))


def test_climatology_of_our_own(paths, tmp_path):
    chosen = channels(["geopotential", "2m_temperature"], LEVELS)
    coefficients = np.zeros((len(HARMONICS), 9, 12, 3), np.float32)
    coefficients[0] = rng.normal(size=(9, 12, 3)) + np.array([50, 50, 280])
    own = Climatology(chosen, Grid(LATITUDE, LONGITUDE), coefficients)
    own.save(tmp_path / "own.npz")
    constant = NORMAL.copy(deep=True)
    constant["geopotential"][:] = np.moveaxis(coefficients[0, ..., :2], -1, 0)
    constant["2m_temperature"][:] = coefficients[0, ..., 2]
    found = score(paths, "--metrics", "acc", climatology=str(tmp_path / "own.npz"))
    same = score(paths, "--metrics", "acc", climatology=save(constant, tmp_path / "c.zarr"))
    assert values(found) == pytest.approx(values(same), abs=1e-4)  # the file rounds to 16 bits
    assert len(found) == 6 * 3 * 3


# --------------------------------------------------------------------------------------------------- files, bad input
def test_command_line(paths, tmp_path, capsys):
    argv = [part for name, path in paths.items() for part in (f"--{name}", path)]
    evaluate.main([*argv, "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert said.err == ""  # no bar off a terminal
    assert "made: global, 18 h, 3 cases" in said.out
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    frame = pandas.read_csv(tmp_path / "out" / "scores.csv")
    assert list(frame.columns) == list(found[0])
    np.testing.assert_allclose(frame["value"], [r["value"] for r in found], rtol=1e-12)
    with xarray.open_dataset(tmp_path / "out" / "scores.nc", decode_timedelta=True) as data:
        for r in found[::9]:
            level = {} if r["level"] is None else {"level": r["level"]}
            at = {"region": r["region"], "prediction_timedelta": pandas.Timedelta(hours=r["lead_hours"]), **level}
            array = data[f"{r['variable']}_{r['metric']}"]
            assert float(array.sel(at)) == r["value"]
            assert array.attrs["units"] == r["unit"]
            assert int(data[f"{r['variable']}_cases"].sel(at)) == r["cases"]
        for name, expected in run(paths)[1].items():
            array = data[f"{name}_rank_histogram"]
            xarray.testing.assert_allclose(array.sel(region=expected["region"], drop=False), expected)
            np.testing.assert_allclose(array.sum("rank"), 1, atol=1e-6)
        assert data.attrs["Conventions"].startswith("CF-1.")
        assert str(tmp_path) not in str(data.attrs)


def test_posterior_of_infer(tmp_path):
    chosen = channels(["temperature", "total_precipitation_6hr"], [500])
    grid, leads = Grid(LATITUDE, LONGITUDE), LEADS.values
    ours = {
        name: ForecastFile(tmp_path / f"{name}.zarr", chosen, grid, STARTS.values, leads, members, chunk=2)
        for name, members in (("posterior", 2), ("truth", None))
    }
    y = rng.normal(size=(3, 9, 12, 2)).astype(np.float32)
    for start in range(3):
        ours["truth"].write(start, slice(None), y)
        ours["posterior"].write(start, slice(None), np.stack([y + 1, y + 3]), members=slice(None))
    found = score({name.replace("posterior", "forecast"): str(file.path) for name, file in ours.items()})
    at = lambda metric: found["europe", "temperature", 500, 12, metric]["value"]
    assert at("bias") == pytest.approx(2, rel=1e-6)
    assert at("rmse") == pytest.approx(2, rel=1e-6)
    assert at("crps") == pytest.approx(2 - 2 / 2, rel=1e-6)
    assert at("spread_skill_ratio") == pytest.approx(np.sqrt(1.5 * 2 / 4), rel=1e-6)
    assert found["global", "total_precipitation_6hr", None, 6, "rmse"]["unit"] == "m"


SHIFTED = TRUTH.assign_coords(longitude=LONGITUDE + 1)
CELSIUS = TRUTH.assign({"2m_temperature": TRUTH["2m_temperature"].assign_attrs(units="degC")})
NO_UNITS = FORECAST.assign_coords(prediction_timedelta=[6, 12, 18])
OTHER_YEAR = TRUTH.assign_coords(time=TIMES + pandas.Timedelta("365D"))
FEWER_LEADS = FORECAST.isel(number=0, drop=True).isel(prediction_timedelta=[0, 2])
BAD = {  # role, content, what the error names of the side that is "made.zarr" and of "other.zarr"
    "grid": (
        "truth",
        TRUTH.isel(latitude=slice(1, None)),
        "made.zarr has .* 9 from -80 to 80 .*other.zarr of 8 from -60",
    ),
    "longitudes": ("truth", SHIFTED, "12 from 0 to 330 .* 12 from 1 to 331"),
    "regional": ("truth", TRUTH.isel(longitude=slice(4)), "grid of the truth .* is not global"),
    "units": ("truth", CELSIUS, "'K' in the forecast .*made.zarr.* 'degC' in the truth .*other.zarr"),
    "levels": ("truth", TRUTH.isel(level=[0]), r"\[850\] .*made.zarr has \[500, 850\], the .*other.zarr has \[500\]"),
    "no levels": ("truth", TRUTH.isel(level=0), r"made.zarr has \[500, 850\], the truth .*other.zarr has no levels"),
    "variables": ("truth", TRUTH[["geopotential"]], "other.zarr lacks '2m_temperature' of the forecast .*made.zarr"),
    "times": (
        "truth",
        TRUTH.isel(time=slice(6)),
        "other.zarr lacks 2 of the 7 values of 'time' that the forecast .*made.zarr needs, from 2000-02-28 06:00:00 to "
        "2000-02-29 18:00:00: the first one is 2000-02-29 12:00:00, and it has 2000-02-28 00:00:00 to 2000-02-29 06",
    ),
    "no time in common": ("truth", OTHER_YEAR, "lacks 7 of the 7"),
    "leads": ("truth", FEWER_LEADS, "lacks 1 of the 3 values of 'prediction_timedelta' .* 0 days 12:00:00"),
    "truth with members": ("truth", FORECAST, "other.zarr is an ensemble of 4"),
    "dimensions": ("truth", TRUTH.rename(latitude="lat"), "truth .* no coordinate 'latitude'"),
    "lead units": ("forecast", NO_UNITS, "no coordinate 'prediction_timedelta' of distinct time differences"),
    "another dimension": ("forecast", FORECAST.rename(number="draw"), "forecast .* has dimensions .*'draw'"),
    "climatology hours": (
        "climatology",
        NORMAL.isel(hour=[0, 2]),
        "other.zarr has no day of the year and hour of 2000-02-28 06:00:00, which the forecast .*made.zarr has",
    ),
    "climatology grid": ("climatology", NORMAL.isel(latitude=slice(1, None)), "made.zarr has a grid .* climatology"),
    "no climatology": ("climatology", TRUTH, r"climatology .* has no coordinate \['dayofyear', 'hour'\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_differ_are_named(paths, tmp_path, case):
    role, data, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        score(paths, **{role: save(data, tmp_path / "other.zarr")})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--variables", "rain"], r"made.zarr has the variables \['2m_temperature', 'geopotential'\] .* \['rain'\]"),
        (["--levels", "500", "300"], r"levels \[300\] hPa of 'geopotential'"),
        (["--leads", "6", "24"], r"lead times \[6, 12, 18\] h, not \[24"),
        (["--regions", "asia"], "No region 'asia'; expected one of global, tropics"),
        (["--regions", "box=1:2:3"], "No region 'box=1:2:3'"),
        (["--regions", "box=1:x:3:4"], "No region 'box=1:x:3:4'"),
        (["--regions", "box=1:2:3:4,5:6"], "No region 'box=1:2:3:4,5:6'"),
        (["--regions", "box=50:40:0:90"], "'box', 50:40:0:90, is no box"),
        (["--regions", "box=1:2:3:4"], "'box', 1:2:3:4, holds no cell centre of the grid of 9 x 12"),
        (["--exceed", "2m_temperature"], "--exceed '2m_temperature'; expected variable=threshold"),
        (["--exceed", "2m_temperature=280,nan"], "--exceed '2m_temperature=280,nan'; expected variable=threshold"),
        (["--exceed", "rain=1"], "--exceed 'rain=1' is of none of the scored variables, 2m_temperature"),
        (["--period", "2010", "2011"], "none of the archive's times"),
        (["--regions", "europe", "--metrics", "spectral_divergence"], "undefined in europe: spectra are of whole"),
    ],
)
def test_choices_that_cannot_be(paths, more, message):
    with pytest.raises(ValueError, match=message):
        score(paths, *more)


def with_units(data, **units):
    return data.assign({name: data[name].assign_attrs(units=unit) for name, unit in units.items()})


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("m s-1", "m/s", True),
        ("m s**-1", "m.s-1", True),
        ("m2 s-2", "m^2/s^2", True),
        ("m**2 s**-2", "m2/s2", True),
        ("kg m-2 s-1", "kg/m^2/s", True),
        ("kg kg-1", "kg/kg", True),
        ("kg kg**-1", "1", True),
        ("s-1", "1/s", True),
        ("(0 - 1)", "(0 - 1)", True),
        ("m s-1", "m s-2", False),
        ("m s-1", "m s", False),
        ("g kg-1", "kg kg-1", False),
        ("m2 s-2", "m", False),
        ("0.1 m", "1.0 m", False),
        ("K", "degC", False),
        ("%", "1", False),
    ],
)
def test_units_are_compared_whatever_their_spelling(paths, tmp_path, one, other, alike):
    pair = {
        "forecast": save(with_units(FORECAST.isel(time=[0]), geopotential=one), tmp_path / "made.zarr"),
        "truth": save(with_units(TRUTH, geopotential=other), tmp_path / "other.zarr"),
    }
    first, second = (evaluate.Fields(*item) for item in pair.items())
    chosen = {"geopotential": LEVELS}
    if alike:
        evaluate.agree(first, second, chosen)  # no warning either
    else:
        strip = lambda unit: re.escape(unit.replace("**", ""))
        message = rf"'{strip(one)}' in the forecast .*made.zarr and in '{strip(other)}' in the truth .*other.zarr"
        with pytest.raises(ValueError, match=message):
            evaluate.agree(first, second, chosen)


def test_units_on_one_side_alone_are_told_once(paths, tmp_path):
    """Those of the table of channels are known, whatever a file leaves out."""
    names = {"geopotential": "wave_height", "2m_temperature": "sea_ice_cover"}
    bare = TRUTH.copy(deep=True)
    for name in bare:
        bare[name].attrs.clear()
    known = save(bare, tmp_path / "known.zarr")
    assert values(score(paths, "--metrics", "rmse", truth=known)) == values(score(paths, "--metrics", "rmse"))
    made = save(FORECAST.rename(names), tmp_path / "made.zarr")
    other = save(bare.rename(names), tmp_path / "other.zarr")
    message = (
        r"same units: 'sea_ice_cover' has 'K' in the forecast .*made.zarr and no units in the truth .*other.zarr; "
        r"'wave_height' has 'm2 s-2' in the forecast .*made.zarr and no units in"
    )
    with pytest.warns(UserWarning, match=message) as told:
        found = score({"forecast": made, "truth": other}, "--metrics", "rmse")
    assert len(told) == 1
    assert found["global", "wave_height", 500, 6, "rmse"]["unit"] == "m2 s-2"


def test_more_bad_input(paths, tmp_path):
    with pytest.raises(ValueError, match=r"acc of the forecast .* --climatology"):
        score({**paths, "climatology": None}, "--metrics", "acc")
    with pytest.raises(ValueError, match=r"Cannot open the truth .*nothing.zarr"):
        score(paths, truth=str(tmp_path / "nothing.zarr"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/out' is not writable"):
        evaluate.main(["--forecast", "a", "--truth", "b", "--out", str(tmp_path / "file" / "out")])
