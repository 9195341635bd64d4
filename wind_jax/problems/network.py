"""A network of stations: reports from a table, or made from the archive with errors, and a few withheld."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import jax
import numpy as np

from wind_jax.data.reports import SPEED, Reports, leave_out, read_stations
from wind_jax.data.store import TIME_STEP
from wind_jax.diffusion.likelihood import gaussian, student_t
from wind_jax.evaluation.baselines import gaussian_members
from wind_jax.evaluation.kriging import kriging
from wind_jax.observations import points as network
from wind_jax.physics import GRAVITY
from wind_jax.problems.problem import Problem, Seen, Setting, archive_states, calendar, case_starts
from wind_jax.rollout import make_chain, rollout
from wind_jax.sphere import bilinear


def stations(
    s: Setting,
    path: str,
    count: int,
    variables: Sequence[str],
    gross_errors: float,
    withheld: float,
    threshold: float,
    background_members: int,
    degrees_of_freedom: float,
    error_scale: float = 1.0,
    truth: str = "archive",
) -> Problem:
    """y: station reports in one window, after quality control against free samples of the prior.

    Args:
        s: the setting.
        path: of a CSV or Parquet table (`data.reports`); empty: stations at random places report the truth with
            errors.
        count: stations of the random network.
        variables: that the random network reports, all at every frame; of a table those used, empty: all.
        gross_errors: share of its reports that are grossly wrong.
        withheld: share of the stations that is kept back for verification.
        threshold: of quality control, in standard deviations; 0: none.
        background_members: free samples of the prior that it compares with.
        degrees_of_freedom: of a Student t likelihood; 0: Gaussian.
        error_scale: times the default errors of `observations.points`, for coarser grids than 100 km.
        truth: "archive": its states in the table's period give the windows and the scores. "none": `config.data.period`
            gives the windows of a table; the archive is read for its grid and static fields alone, nothing is scored.

    Raises:
        ValueError: another truth, or none without a table; an archive without the ground, an error scale that is not
            positive, no report in a window, or what reports, quality control and placing refuse.
    """
    if truth not in ("archive", "none") or (truth == "none" and not path):
        raise ValueError(f'The truth must be "archive", or "none" with a table of reports; got {truth!r} and {path!r}.')
    if not (np.isfinite(error_scale) and error_scale > 0):
        raise ValueError(f"The scale of the stations' errors must be positive, got {error_scale}.")
    if s.surface_geopotential is None:
        raise ValueError(f"Stations need geopotential_at_surface; {s.store.path} has none.")
    prior, statistics = s.prior, s.prior.statistics
    table = read_stations(path, statistics.channels, variables) if path else None
    clock = s.store.times if truth == "archive" else calendar(s.period)
    starts = case_starts(s, prior.frames, clock)
    states = archive_states(s, starts) if truth == "archive" else None
    errors = {name: error_scale * value for name, value in network.ERRORS.items()}
    times = lambda case: clock[int(starts[case]) :][: prior.frames]
    leads = TIME_STEP * np.arange(prior.frames)

    def place(reports, case):
        return network.place(reports, prior.grid, times(case), statistics.channels, s.surface_geopotential, errors)

    @lru_cache
    def judged(case):
        """Reports to assimilate, reports withheld, and what quality control says of both."""
        key = jax.random.fold_in(s.key, case)
        if table is not None:
            window, reports = (times(case)[0], times(case)[-1]), table
            reports = reports.select((reports.time >= window[0]) & (reports.time <= window[1]))
            if not len(reports):
                raise ValueError(f"{path} has no report between {window[0]} and {window[1]}, the times of case {case}.")
        else:
            reports = made_up(
                s, states(case, 0, prior.frames), times(case), count, variables, errors, gross_errors, key
            )
        rejected = []
        if threshold:
            free = rollout(
                prior, None, prior.inputs(s.static, times(case)), background_members, jax.random.fold_in(key, 1),
                make_chain("ddim", 12, 0.98),
            )  # fmt: skip
            operator = jax.vmap(network.equivalents(place(reports, case)))
            expected = jax.tree.map(np.asarray, operator(statistics.physical(next(free))))
            keep, rejected = network.quality_control(reports, place(reports, case), expected, threshold)
            reports = reports.select(keep)
        used, kept_back = leave_out(reports, withheld, jax.random.fold_in(key, 2)) if withheld else (reports, None)
        return used, kept_back, rejected

    sizes: dict[str, int] = {}
    for case in range(s.cases):
        for name, points in place(judged(case)[0], case).items():
            sizes[name] = max(sizes.get(name, 0), points.y.size)

    def values(case):
        """Reports at their nearest cells, for the figures."""
        out = np.full((prior.frames, *prior.shape[1:]), np.nan, np.float32)
        position = {c.name: i for i, c in enumerate(statistics.channels) if c.level is None}
        reports = judged(case)[0]
        frame = np.rint((reports.time - times(case)[0]) / TIME_STEP).astype(int)
        row = np.abs(prior.grid.latitude[None, :] - reports.latitude[:, None]).argmin(1)
        away = np.abs((prior.grid.longitude[None, :] - reports.longitude[:, None] + 180) % 360 - 180)
        for i, name in enumerate(reports.variable):
            if name in position and not reports.level[i]:
                out[frame[i], row[i], away[i].argmin(), position[name]] = reports.value[i]
        return out

    @lru_cache(maxsize=1)
    def kriged(case):
        """From the reports at their nearest cells; those of wind speed say nothing of its components."""
        error = np.array([errors.get(c.name, 0.0) if c.level is None else 0.0 for c in statistics.channels])
        reports = statistics.normalize(values(case))
        return kriging(reports, background(case), times(case), prior.grid, s.covariance, error / statistics.std)

    def baseline(case, lead):
        if s.covariance is None:
            return {}
        estimate = (field[lead] for field in kriged(case))
        return {"kriging": gaussian_members(*estimate, statistics, (case, lead.start))}

    def report(posterior):
        records, lines = [], []
        for case in range(s.cases):
            used, kept_back, rejected = judged(case)
            lines.append(f"case {case}: {len(used)} reports assimilated, {len(rejected)} rejected by quality control")
            independent = {}
            if kept_back is not None and len(kept_back):
                placed = place(kept_back, case)
                operator = jax.jit(jax.vmap(network.equivalents(placed)))
                members = operator(jax.numpy.asarray(posterior(case)))
                normal = operator(jax.numpy.asarray(prior.statistics.denormalize(background(case))[None]))
                for name, points in placed.items():
                    rmse = lambda y: float(np.sqrt(np.mean((np.asarray(y) - points.y) ** 2)))  # noqa: B023
                    independent[name] = {
                        "reports": int(points.y.size),
                        "posterior": rmse(np.asarray(members[name]).mean(0)),
                        "climatology": rmse(normal[name][0]),
                    }
                    lines.append(
                        f"  {points.y.size} withheld reports of {name}: RMSE {independent[name]['posterior']:.4g} of "
                        f"the posterior mean, {independent[name]['climatology']:.4g} of climatology"
                    )
            records.append(
                {
                    "case": case,
                    "assimilated": len(used),
                    "dropped": used.dropped,
                    "withheld": independent,
                    "rejected": [{**r._asdict(), "time": str(r.time)} for r in rejected],
                }
            )
        return {"stations": records}, lines

    def background(case):
        inputs = prior.inputs(s.static, times(case))
        return np.broadcast_to(np.asarray(prior.mean(inputs), np.float32), prior.shape)

    likelihood = student_t(degrees_of_freedom) if degrees_of_freedom else gaussian
    return Problem(
        starts=starts,
        context=0,
        overlap=0,
        windows=1,
        leads=leads,
        observe=lambda placed: network.station_observation(placed, statistics, s.variance, likelihood),
        told=lambda case, window: network.pad(place(judged(case)[0], case), sizes),
        seen=Seen(prior.grid, leads, values, masked=False),
        baseline=baseline,
        states=states,
        scored=states is not None,
        report=report,
        times=clock[starts],
    )


def made_up(
    s: Setting,
    truth: np.ndarray,
    times: np.ndarray,
    count: int,
    variables: Sequence[str],
    errors: Mapping[str, float],
    gross_errors: float,
    key: jax.Array,
) -> Reports:
    """Reports of the truth (t, h, w, c) by stations at random places on the model's ground, some grossly wrong.

    Raises:
        ValueError: no station, variables without a default error, or a share of gross errors outside [0, 1).
    """
    if count < 1 or not 0 <= gross_errors < 1:
        raise ValueError(f"Expected stations and a share of gross errors in [0, 1), got {count} and {gross_errors}.")
    if unknown := sorted(set(variables) - set(errors)):
        raise ValueError(f"Stations do not report {unknown}; they report {', '.join(errors)}.")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    latitude, longitude = np.rad2deg(np.arcsin(rng.uniform(-1, 1, count))), rng.uniform(0, 360, count)
    indices, weights = bilinear(s.prior.grid, latitude, longitude)
    elevation = (s.surface_geopotential.ravel()[indices] * weights).sum(-1) / GRAVITY
    name, frame, station = (
        a.ravel() for a in np.meshgrid(np.array(variables), np.arange(len(times)), np.arange(count), indexing="ij")
    )
    blank = Reports(
        station=np.array([f"S{i:04d}" for i in range(count)])[station],
        time=times[frame],
        latitude=latitude[station],
        longitude=longitude[station],
        elevation=elevation[station],
        variable=name,
        level=np.zeros(name.size, int),
        value=np.zeros(name.size),
        error=np.full(name.size, np.nan),
    )
    placed = network.place(blank, s.prior.grid, times, s.prior.statistics.channels, s.surface_geopotential, errors)
    exact = network.equivalents(placed)(jax.numpy.asarray(truth))
    value = np.zeros(name.size)
    for variable, points in placed.items():
        noise = rng.normal(size=points.y.size)
        wrong = rng.uniform(size=points.y.size) < gross_errors
        value[name == variable] = np.asarray(exact[variable]) + points.error * np.where(wrong, 60 * noise, noise)
    value = np.where(name == SPEED, np.maximum(value, 0), value)
    value = np.where(name == network.RAIN, (10 ** np.clip(value, 0, 4) - 1) / 1000, value)  # compared as logarithms
    return Reports(**{**{f: getattr(blank, f) for f in vars(blank)}, "value": value})
