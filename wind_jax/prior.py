"""The frozen prior: weights, geometry, statistics and diffusion settings in one portable file.

A `Prior` is a pytree whose leaves are its parameters and its spectrum. It passes through `jax.jit` as an argument, so
that one compiled sampler serves it with any parameters.
"""

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import Array, Float

from wind_jax.data.climatology import Climatology
from wind_jax.data.forcings import FORCING_NAMES, forcings
from wind_jax.data.normalize import Statistics
from wind_jax.diffusion.denoiser import Denoiser, about, make_denoiser
from wind_jax.diffusion.reference import WHITE, Reference, Spectrum
from wind_jax.diffusion.schedule import SCHEDULES, Schedule
from wind_jax.files import read_bytes, write_bytes
from wind_jax.model.uvit import UViT, UViTConfig
from wind_jax.sphere import Grid

FORMAT = "wind_jax.prior/1"


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """An unconditional video diffusion model of the atmosphere, p(x).

    Attributes:
        params: parameters of the U-ViT as nested dicts of arrays (float32).
        config: architecture.
        statistics: change between physical units and model units; names the channels.
        grid: latitude and longitude of the fields.
        frames: frames of one window, 6 h apart.
        schedule_name: forward process, a key of `wind_jax.diffusion.schedule.SCHEDULES`.
        prediction: what the network predicts, one of `wind_jax.diffusion.denoiser.PREDICTIONS`.
        climatology: about which the network sees anomalies; None: about the statistics' mean.
        provenance: JSON text that says what the prior was trained on, for how long and with which config.
        spectrum: Gaussian reference of the "preconditioned" prediction; None: `White`.
    """

    params: Any
    config: UViTConfig
    statistics: Statistics
    grid: Grid
    frames: int
    schedule_name: str
    prediction: str
    climatology: Climatology | None = None
    provenance: str = "{}"
    spectrum: Spectrum | None = None

    @property
    def schedule(self) -> Schedule:
        """The forward process x_t = alpha(t) x + sigma(t) z."""
        return SCHEDULES[self.schedule_name]()

    @property
    def reference(self) -> Reference:
        """The Gaussian reference of the "preconditioned" prediction."""
        return WHITE if self.spectrum is None else self.spectrum

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (t, h, w, c) of one window."""
        return (self.frames, *self.grid.shape, self.config.channels)

    @property
    def inputs_shape(self) -> tuple[int, int, int, int]:
        """Shape (t, h, w, f) of the `inputs` of one window."""
        estimate = 0 if self.spectrum is None else self.config.channels  # the denoiser adds it
        return (*self.shape[:-1], self.config.forcings - estimate)

    def inputs(self, static: Float[np.ndarray, "h w 6"], times: np.ndarray) -> Float[np.ndarray, "t h w f"]:
        """What the network is told at some times: the 10 forcings, then the climatology in model units, if any.

        Args:
            static: from `static_forcings`.
            times: (t,) datetime64, UTC.
        """
        known = forcings(static, times)
        if self.climatology is None:
            return known
        return np.concatenate([known, self.statistics.normalize(self.climatology.at(times))], axis=-1)

    def mean(self, inputs: Float[Array | np.ndarray, "*b t h w f"]):
        """The climatology among the `inputs`, (..., t, h, w, c) in model units; 0 where there is none."""
        return 0.0 if self.climatology is None else inputs[..., len(FORCING_NAMES) :]

    def digest(self) -> str:
        """SHA-256 of what the network and its units are, for a run that goes on only with the same."""
        about = repr((self.config, self.statistics.channels, self.frames, self.schedule_name, self.prediction))
        units = [self.statistics.mean, self.statistics.std]
        units += [] if self.climatology is None else [self.climatology.coefficients]
        arrays = jax.tree.leaves((self.spectrum, self.params))
        parts = about, self.grid.latitude, self.grid.longitude, *units, *arrays
        return hashlib.sha256(b"".join(np.asarray(part).tobytes() for part in parts)).hexdigest()

    def denoiser(self, inputs: Float[Array | np.ndarray, "*b t h w f"]) -> Denoiser:
        """The map (x_t, t) -> E[x | x_t] in model units.

        Args:
            inputs: as of `Prior.inputs`, (t, h, w, f) shared by all members or (b, t, h, w, f).
        """
        network = informed(graph(self.config), self.params, inputs)
        denoiser = make_denoiser(network, self.schedule, self.prediction, self.reference)
        return denoiser if self.climatology is None else about(self.mean(inputs), denoiser, self.schedule)


jax.tree_util.register_dataclass(
    Prior,
    data_fields=["params", "spectrum"],
    meta_fields=[f.name for f in dataclasses.fields(Prior) if f.name not in ("params", "spectrum")],
)


def graph(config: UViTConfig) -> nnx.GraphDef:
    """Static structure of the network, without allocating its parameters."""
    return nnx.split(nnx.eval_shape(lambda: UViT(config, rngs=nnx.Rngs(0))))[0]


def apply(graphdef: nnx.GraphDef, params: Any, x_t: jax.Array, t: jax.Array, forcings: jax.Array) -> jax.Array:
    """Pure form of the network: nested dict of parameters and inputs (b, t, h, w, .) -> output (b, t, h, w, c)."""
    return nnx.merge(graphdef, nnx.State(params))(x_t, t, forcings)


def informed(
    graphdef: nnx.GraphDef, params: Any, inputs: Float[Array | np.ndarray, "*b t h w f"]
) -> Callable[..., jax.Array]:
    """The network with its inputs, as `make_denoiser` takes it: `(x_t, t)`, or `(x_t, t, estimate)`, to its output.

    Args:
        graphdef: from `graph`.
        params: of the network.
        inputs: as of `Prior.inputs`, (t, h, w, f) shared by all samples or (b, t, h, w, f). The estimate of a
            `Spectrum` comes after them.
    """

    def network(x_t, t, *estimate):
        whole = jnp.broadcast_to(inputs, (x_t.shape[0], *inputs.shape[-4:]))
        return apply(graphdef, params, x_t, t, jnp.concatenate([whole, *estimate], axis=-1))

    return network


def save_prior(path: str | os.PathLike, prior: Prior, dtype: str = "float32") -> None:
    """Write `prior` to one .npz file, atomically.

    Args:
        path: of a file, or gs:// or s3://.
        prior: what to write.
        dtype: of the stored parameters.

    Raises:
        OSError: it could not be written.
    """
    arrays = {
        "params/" + key: np.asarray(value, dtype)
        for key, value in traverse_util.flatten_dict(prior.params, sep="/").items()
    }
    if prior.spectrum is not None:
        arrays |= {
            "spectrum/" + name: np.asarray(value, np.float32) for name, value in prior.spectrum._asdict().items()
        }
    if prior.climatology is not None:
        arrays |= {"climatology/" + key: value for key, value in prior.climatology.pack().items()}
    metadata = {
        "format": FORMAT,
        "config": dataclasses.asdict(prior.config),
        "statistics": prior.statistics.to_dict(),
        "latitude": prior.grid.latitude.tolist(),
        "longitude": prior.grid.longitude.tolist(),
        "frames": prior.frames,
        "schedule": prior.schedule_name,
        "prediction": prior.prediction,
        "provenance": json.loads(prior.provenance),
    }
    buffer = io.BytesIO()
    np.savez(buffer, metadata=np.array(json.dumps(metadata)), **arrays)
    write_bytes(path, buffer.getvalue())


def load_prior(path: str | os.PathLike) -> Prior:
    """Read a prior written by `save_prior`.

    Args:
        path: of a file, or gs://, s3:// or http(s)://.

    Raises:
        ValueError: the file does not exist, is not a prior, or its parameters do not fit its architecture.
    """
    data = read_bytes(path)
    if data is None:
        raise ValueError(f"prior {str(path)!r} does not exist; expected a file written by training.")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        metadata = json.loads(str(arrays.pop("metadata")))
    except Exception as error:
        raise ValueError(f"{str(path)!r} is not a readable prior file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{str(path)!r} has format {metadata.get('format')!r}, expected {FORMAT!r}.")
    config = UViTConfig(**{k: _tuples(v) for k, v in metadata["config"].items()})
    part = lambda name: {k.removeprefix(name): v for k, v in arrays.items() if k.startswith(name)}
    params = {key: jnp.asarray(value, jnp.float32) for key, value in part("params/").items()}
    _check_parameters(path, params, config)
    spectrum, climatology = part("spectrum/"), part("climatology/")
    return Prior(
        params=traverse_util.unflatten_dict(params, sep="/"),
        config=config,
        statistics=Statistics.from_dict(metadata["statistics"]),
        grid=Grid(np.asarray(metadata["latitude"]), np.asarray(metadata["longitude"])),
        frames=metadata["frames"],
        schedule_name=metadata["schedule"],
        prediction=metadata["prediction"],
        climatology=Climatology.unpack(climatology) if climatology else None,
        provenance=json.dumps(metadata["provenance"]),
        spectrum=Spectrum(**spectrum) if spectrum else None,
    )


def parameter_shapes(config: UViTConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Name ("a/b/c") and shape of every parameter of the architecture, without allocating any."""
    state = nnx.split(nnx.eval_shape(lambda: UViT(config, rngs=nnx.Rngs(0))))[1]
    return traverse_util.flatten_dict(pure_params(state), sep="/")


def pure_params(state: Any) -> dict[str, Any]:
    """The arrays of an `nnx.State` as nested dicts with string keys: what the rest of the package stores and shards."""
    return nnx.to_pure_dict(state)


def _check_parameters(path, params: Mapping[str, jax.Array], config: UViTConfig) -> None:
    expected = {name: leaf.shape for name, leaf in parameter_shapes(config).items()}
    found = {name: leaf.shape for name, leaf in params.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        lines = ", ".join(f"{n}: found {found.get(n)}, expected {expected.get(n)}" for n in wrong[:8])
        raise ValueError(f"{str(path)!r} does not fit its architecture in {len(wrong)} parameters: {lines}.")


def _tuples(value):
    return tuple(value) if isinstance(value, list) else value
