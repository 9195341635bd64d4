r"""An analysis from station reports with gross errors among them, verified at stations that it never saw.

    python -m wind_jax.infer --config experiments/stations.py
    python -m wind_jax.infer --config experiments/stations.py --config.task.path=reports.csv --config.data.path=...
    python -m wind_jax.infer --config experiments/stations.py --config.task.path=reports.csv --config.task.truth=none \
        --config.data.period="('2018-11-02', '2018-11-03')" --config.cases=1

Without a table, 400 stations at random places report the held-out sample's truth; 2 % of the reports are grossly wrong.
Quality control compares all with free samples of the prior first. `report.json` says what it rejected.
With a table and no truth, as for a day that no archive has yet, the period gives the window, and the archive only the
static fields of the grid; there are no scores and no figures, but the verification at withheld stations.
Hardware: two CPU cores, 6 GB of memory.
"""

from ml_collections import ConfigDict

from wind_jax.experiments import defaults


def get_config() -> ConfigDict:
    c = defaults.inference("stations")
    c.workdir = "runs/stations"
    c.task.error_scale = 0.5
    return c
