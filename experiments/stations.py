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

from experiments import sparse_obs


def get_config() -> ConfigDict:
    c = sparse_obs.get_config()
    c.workdir = "runs/stations"

    c.task = ConfigDict()
    c.task.name = "stations"
    c.task.path = ""  # a CSV or Parquet table; empty: a random network
    c.task.truth = "archive"  # or "none", with a table
    c.task.count = 400  # stations of the random network
    # of the random network; of a table those used, empty: all
    c.task.variables = ("2m_temperature", "mean_sea_level_pressure", "10m_wind_speed")
    c.task.gross_errors = 0.02  # share of its reports
    c.task.withheld = 0.2  # share of the stations kept back for verification
    c.task.threshold = 5.0  # of quality control, in standard deviations; 0: none
    c.task.background_members = 8
    c.task.degrees_of_freedom = 0.0  # of a Student t likelihood; 0: Gaussian
    c.task.error_scale = 0.5  # times the default errors

    return c
