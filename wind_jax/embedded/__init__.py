"""What the package carries: a held-out SPEEDY sample and a pretrained prior."""

from importlib import resources


def embedded(name: str) -> str:
    """Path of the packaged file `name`: "prior.npz" or "sample.zarr".

    Raises:
        ValueError: this installation does not have it.
    """
    path = resources.files(__name__) / name
    if not (path.is_file() or path.is_dir()):
        raise ValueError(
            f"This installation of wind_jax does not carry the file {name!r} (expected at {path}); "
            "give a path of your own in the configuration, or install a complete package."
        )
    return str(path)


def resolve(path: str, name: str) -> str:
    """The packaged file `name` where `path` is the word "embedded", else `path` itself."""
    return embedded(name) if path == "embedded" else path
