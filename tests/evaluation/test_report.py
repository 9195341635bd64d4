"""The page of a run: complete in itself, true to the files, and alive in a real browser."""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray
from matplotlib.figure import Figure

from wind_jax import config
from wind_jax.evaluation import figures
from wind_jax.evaluation.report import METRICS, asked, main, report
from wind_jax.problems.registry import PROBLEMS
from wind_jax.sphere import Grid

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LATITUDE, LONGITUDE, LEVELS = np.linspace(-78.75, 78.75, 8), np.arange(16) * 22.5, [500, 850]
LEADS, MEMBERS = 4, 3
IN_UNITS = ("rmse", "debiased_rmse", "crps")


def dataset(rng, members=None, seen=1.0):
    """Two cases of two variables in the schema of forecasts."""
    coordinates = {
        "time": np.array(["2001-04-10T06", "2001-04-20T06"], "datetime64[ns]"),
        **({"number": np.arange(members)} if members else {}),
        "prediction_timedelta": np.arange(1, LEADS + 1) * np.timedelta64(6, "h").astype("timedelta64[ns]"),
        "level": LEVELS,
        "latitude": LATITUDE,
        "longitude": LONGITUDE,
    }
    out = xarray.Dataset(coords=coordinates)
    for name, units, middle, spread in (("geopotential", "m2 s-2", 5e4, 3e3), ("2m_temperature", "K", 280.0, 15.0)):
        dims = [d for d in coordinates if d != "level" or name == "geopotential"]
        x = rng.normal(middle, spread, [len(coordinates[d]) for d in dims]).astype(np.float32)
        out[name] = (dims, np.where(rng.random(x.shape) < seen, x, np.float32(np.nan)), {"units": units})
    return out


def records(rng):
    """Of 6 hours, errors whose order is not that of their numbers in the table, where geopotential is divided by g."""
    first = {("geopotential", 500): 400.0, ("geopotential", 850): 30.0, ("2m_temperature", None): 20.0}
    keys = [("geopotential", 500), ("geopotential", 850), ("2m_temperature", None)]
    units = {"geopotential": "m2 s-2", "2m_temperature": "K"}
    return [
        {
            "variable": variable, "level": level, "method": method, "region": "global", "metric": metric,
            "lead_hours": hours, "cases": 2, "missing": 0.0,
            "value": first[variable, level] if (hours, metric) == (6, "rmse") else float(rng.lognormal(0, 3)),
            "unit": units[variable] if metric in IN_UNITS else "1",
        }
        for hours in (6, 12, 18, 24)
        for method in ("posterior", "persistence", "climatology")
        for metric in ("rmse", "crps", "acc", *(("debiased_rmse", "spread_skill_ratio") * (method == "posterior")))
        for variable, level in keys
    ]  # fmt: skip


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Folder of a complete run of two cases."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    for name, args in (("truth", ()), ("posterior", (MEMBERS,)), ("observations", (None, 0.1))):
        dataset(rng, *args).to_zarr(folder / f"{name}.zarr", zarr_format=2, consolidated=True)
    settings = json.loads(config.to_json(config.read("forecast", "inference")))
    settings["members"] = MEMBERS
    whole = {"experiment": "forecast", **settings, "fingerprint": {"prior": "0123"}}
    (folder / "config.json").write_text(json.dumps(whole))
    (folder / "scores.json").write_text(json.dumps(records(rng)))
    said = {"storylines": [{"case": 0, "arm": "<b>", "signal_kept": {"temperature_850": [0.98, 0.7, 0.61]}}]}
    (folder / "report.json").write_text(json.dumps(said))
    land = (np.add.outer(LATITUDE, LONGITUDE) > 150).astype(np.float32)
    figures.keep_static(folder, {"land_sea_mask": land}, Grid(LATITUDE, LONGITUDE))
    (folder / "figures").mkdir()
    Figure(figsize=(1, 1)).savefig(folder / "figures" / "spectra.png")
    report(folder)
    return folder


class Page(HTMLParser):
    """What a page refers to, and its cells."""

    def __init__(self, text):
        super().__init__()
        self.references, self.images, self.values = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.references += [attrs[key] for key in ("src", "href", "srcset", "action", "data") if key in attrs]
        if tag == "img":
            self.images.append(attrs)
        if tag == "td" and "data-value" in attrs:
            self.values.append(float(attrs["data-value"]))


def data(folder):
    text = (folder / "report.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_is_complete_in_itself(run):
    text = (run / "report.html").read_text()
    page = Page(text)
    assert page.references
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    assert page.images
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in page.images)
    assert not re.search(r"url\(|@import|https?://|%%", text)
    assert "default-src 'none'" in text  # the browser is told to fetch nothing


def in_the_table(record):
    """Heights in m, as on the maps."""
    return record["value"] * (1 / 9.80665 if record["unit"] == "m2 s-2" else 1)


def test_every_score_is_in_the_table_to_the_last_digit(run):
    page = Page((run / "report.html").read_text())
    found = json.loads((run / "scores.json").read_text())
    assert sorted(page.values) == sorted(map(in_the_table, found))
    text = (run / "report.html").read_text()
    groups = re.findall(r'<th colspan="(\d+)" scope="colgroup">(.*?)</th>', text)
    metrics = {name: metric for metric, name in METRICS.items()}
    above = [metrics[name] for span, name in groups for _ in range(int(span))]
    methods = [name.lower() for name in re.findall(r"<button[^>]*>([^<]*)</button></th>", text)][1:]
    fields = {
        "Geopotential height 500 hPa": ("geopotential", 500),
        "Geopotential height 850 hPa": ("geopotential", 850),
        "2 m temperature": ("2m_temperature", None),
    }
    bodies = re.findall(r"<tbody>(.*?)</tbody>", text, re.DOTALL)
    for hours, body in zip((6, 12, 18, 24), bodies, strict=True):
        for row in re.findall(r"<tr>(.*?)</tr>", body):
            variable, level = fields[re.search(r'<th scope="row">(.*?) <span', row)[1]]
            cells = Page(row).values
            assert len(cells) == len(above) == len(methods)
            shown = re.findall(r"<td[^>]*>([^<]+)</td>", row)
            assert shown == [f"{value:.4g}" for value in cells]  # a heading sorts by what is seen
            assert f'<span class="soft">{"m" if variable == "geopotential" else "K"}</span>' in row
            for value, metric, method in zip(cells, above, methods, strict=True):
                where = {"variable": variable, "level": level, "method": method, "metric": metric, "lead_hours": hours}
                assert [value] == [in_the_table(r) for r in found if where.items() <= r.items()]


def test_means_in_time_and_space_stand_in_every_frame_and_cell_that_they_are_over(run, tmp_path):
    """Observations of the first of every two frames and of every other column."""
    for name in ("truth", "posterior"):
        (tmp_path / f"{name}.zarr").symlink_to(run / f"{name}.zarr")
    seen = xarray.open_zarr(run / "truth.zarr", chunks=None).isel(
        prediction_timedelta=slice(None, None, 2), longitude=slice(None, None, 2)
    )
    seen.drop_encoding().to_zarr(tmp_path / "observations.zarr", zarr_format=2, consolidated=True)
    shown = figures.fields(tmp_path, "2m_temperature", None, np.arange(LEADS), members=1)
    assert shown.sizes["prediction_timedelta"] == LEADS
    for frame in range(LEADS):
        x = shown.isel(prediction_timedelta=frame)
        there = seen["2m_temperature"].isel(time=0, prediction_timedelta=frame // 2)
        np.testing.assert_array_equal(x["observations"].sel(longitude=there["longitude"]), there)
    assert np.isfinite(shown["observations"]).all()


def test_the_maps_are_the_files_to_a_step_of_their_colours(run):
    """Undone by hand: bytes -> values -> the fields, clipped at the limits; 255 where nothing was observed."""
    shown = data(run)
    names = [panel["key"] for panel in shown["panels"][:-1]] + [f"member_{i + 1}" for i in range(shown["members"])]
    files = {name: xarray.open_zarr(run / f"{name}.zarr", chunks=None)["2m_temperature"][0] for name in (
        "truth", "posterior", "observations")}  # fmt: skip
    members = files["posterior"]
    expected = {
        "truth": files["truth"] - 273.15,
        "observations": files["observations"] - 273.15,
        "mean": members.mean("number") - 273.15,
        "error": members.mean("number") - files["truth"],
        "spread": members.std("number", ddof=1),
        **{f"member_{i + 1}": members[i] - 273.15 for i in range(MEMBERS)},
    }
    field = next(f for f in shown["fields"] if f["name"] == "2 m temperature")
    assert (field["unit"], field["difference_unit"]) == ("°C", "K")
    levels = np.frombuffer(zlib.decompress(base64.b64decode(field["data"])), np.uint8)
    levels = levels.reshape(1, len(names), LEADS, 8, 16)[0]
    assert set(names) == set(expected)
    for name, level in zip(names, levels, strict=True):
        scale = field["scales"][{"error": "error", "spread": "spread"}.get(name, "value")]
        step = (scale["high"] - scale["low"]) / 254
        values = np.where(level == 255, np.nan, scale["low"] + step * level)
        np.testing.assert_allclose(values, expected[name].clip(scale["low"], scale["high"]), atol=0.51 * step)
    assert field["scales"]["error"]["low"] == -field["scales"]["error"]["high"]


def test_the_experiment_of_the_page_is_the_one_that_ran(run, tmp_path):
    text = (run / "report.html").read_text()
    file = tmp_path / "experiment.py"
    file.write_text(
        unescape(next(p for p in re.findall(r"<pre[^>]*>(.*?)</pre>", text, re.DOTALL) if "get_config" in p))
    )
    again = json.loads(config.to_json(config.read(str(file), "inference")))
    asked_for = json.loads((run / "config.json").read_text())
    assert again == {key: value for key, value in asked_for.items() if key not in ("experiment", "fingerprint")}


def test_text_of_the_run_is_no_markup(run):
    text = (run / "report.html").read_text()
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert "0.98 … 0.61" in text


@pytest.mark.parametrize("task", sorted(set(PROBLEMS) - {"custom"}))
def test_every_task_is_told_in_words(task):
    c = json.loads(config.to_json(config.read(task, "inference")))
    words = asked(c)
    assert f"{c['members']} members" in words
    assert len(words.split(".")[0]) > 30
    for entry in ("factor", "mean_over", "windows", "fraction", "kelvin", "leads"):
        if entry in c["task"] and (entry, task) != ("leads", "warming"):
            shown = f"{100 * c['task'][entry]:g} %" if entry == "fraction" else f"{c['task'][entry]:g}"
            assert shown in words


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"no complete run .*config\.json"):
        main([str(tmp_path)])


# -------------------------------------------------------------------------------------------------------- in a browser
class Browser:
    """One tab of a headless Chromium, driven by the DevTools protocol over a pair of pipes.

    `requests` are the addresses it asked for, `complaints` what its console and its exceptions say.
    """

    def __init__(self, profile: Path):
        (read, theirs_out), (theirs_in, write) = os.pipe(), os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        command = [CHROMIUM, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        # Chromium reads from descriptor 3 and writes to 4.
        place = "import os, sys; [os.dup2(int(fd), i) for fd, i in zip(sys.argv[1:3], (3, 4))]; "
        launch = [sys.executable, "-c", place + "os.execv(sys.argv[3], sys.argv[3:])", str(theirs_in), str(theirs_out)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([*launch, *command], pass_fds=(theirs_in, theirs_out), **quiet)
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out = os.fdopen(write, "wb", buffering=0), os.fdopen(read, "rb")
        self._rest, self._count, self._session = b"", 0, {}
        self.requests, self.complaints, self.loaded = [], [], False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Network", "Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    def _message(self):
        while b"\0" not in self._rest:
            self._rest += self._out.read1(1 << 16) or pytest.fail("the browser ended")
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event):
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True
        elif method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.complaints.append(params)

    def call(self, method, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        self._in.write(json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._count:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path, width, height=900, dark=False):
        media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=media)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.loaded = False
        self.call("Page.navigate", url=path.as_uri())
        while not self.loaded:
            self._note(self._message())
        self.wait("'drawn' in document.body.dataset")

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression):
        again = f"if ({expression}) {{ clearInterval(timer); done(1); }}"
        poll = f"new Promise(done => {{ const timer = setInterval(() => {{ {again} }}, 20); }})"
        self.value(poll)

    def key(self, key, code):
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def close(self):
        self._session = {}
        with contextlib.suppress(OSError):
            self.call("Browser.close")
        self._process.wait(timeout=20)
        self._in.close()
        self._out.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    tab = Browser(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_the_page_lives_in_a_browser(run, browser, width, dark):
    """It loads, the sliders change the maps by keyboard, the table sorts; nothing is fetched, nothing complains."""
    del browser.requests[:], browser.complaints[:]
    browser.open(run / "report.html", width, dark=dark)
    picture = lambda panel: browser.value(f"document.querySelector('[data-panel={panel}]').toDataURL()")
    state = lambda: json.loads(browser.value("document.body.dataset.drawn"))
    first = {panel: picture(panel) for panel in ("truth", "mean", "member", "error", "spread", "observations")}
    assert len(set(first.values())) == len(first)

    browser.value("document.getElementById('lead').focus()")
    browser.key("ArrowRight", 39)
    browser.wait("JSON.parse(document.body.dataset.drawn).lead === 1")
    second = {panel: picture(panel) for panel in first}
    assert all(second[panel] != first[panel] for panel in first)
    assert "2001-04-10 18 UTC (+12 h)" in browser.value("document.getElementById('when').textContent")

    browser.value("document.getElementById('member').focus()")
    browser.key("ArrowRight", 39)
    browser.wait("JSON.parse(document.body.dataset.drawn).member === 2")
    assert state() == {"field": 0, "run": 0, "lead": 1, "member": 2}
    changed = {panel for panel in first if picture(panel) != second[panel]}
    assert changed == {"member"}
    assert "Member 2" in browser.value("document.querySelector('[data-panel=member]').getAttribute('aria-label')")

    column = "[...document.querySelectorAll('#table tbody')][0].rows"
    browser.value("document.querySelectorAll('#table thead button')[1].click()")
    seen = f"[...{column}].map(row => row.cells[1].textContent)"
    assert browser.value(seen) == ["3.059", "20", "40.79"]  # 30 and 400 m2 s-2 are fewer metres
    browser.value("document.querySelectorAll('#table thead button')[1].click()")
    assert browser.value(seen) == ["40.79", "20", "3.059"]
    visible = "[...document.querySelectorAll('#table tbody')].map(body => !body.hidden)"
    browser.value(
        "const g = document.getElementById('group'); g.selectedIndex = 3; g.dispatchEvent(new Event('change'))"
    )
    assert browser.value(visible) == [False, False, False, True]

    assert browser.value("document.documentElement.scrollWidth") <= width  # no sideways scrolling of the page
    assert [url for url in browser.requests if not url.startswith("data:")] == [(run / "report.html").as_uri()]
    assert browser.complaints == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_pixel_has_the_colour_of_its_cell(run, browser):
    """The middle of the map is 0 E at the equator's north: the cell of longitude 0 and the first positive latitude."""
    browser.open(run / "report.html", 1280)
    shown = data(run)
    levels = np.frombuffer(zlib.decompress(base64.b64decode(shown["fields"][0]["data"])), np.uint8)
    level = levels.reshape(-1, LEADS, 8, 16)[0, 0, 4, 0]
    colour = shown["fields"][0]["scales"]["value"]["colours"][int(np.floor(level / 254 * 127 + 0.5))]
    pixel = browser.value(
        "(() => { const c = document.querySelector('[data-panel=truth]');"
        "return [...c.getContext('2d').getImageData(c.width / 2 | 0, c.height * 0.45 | 0, 1, 1).data]; })()"
    )
    assert "#{:02x}{:02x}{:02x}".format(*pixel[:3]) == colour
