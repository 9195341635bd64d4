"""On an accelerator: `make test-device`. What runs there in bfloat16 is what runs on the host in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wind_jax.model.layers import attention, fuses
from wind_jax.model.uvit import UViT, UViTConfig
from wind_jax.prior import apply, graph, pure_params

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(jax.default_backend() == "cpu", reason="there is no accelerator"),
]


@pytest.mark.parametrize("width", [64, 256])
def test_attention_and_its_gradient_equal_their_definition(width):
    """Fused or not: heads of 64 are fused on NVIDIA GPUs, those of 256 of the published network are not."""
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 128, 4, width)) for i in range(3))

    def definition(q, k, v):
        logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, precision="highest") / np.sqrt(width).astype(np.float32)
        return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits), v, precision="highest")

    half = lambda *arrays: attention(*(a.astype(jnp.bfloat16) for a in arrays)).astype(jnp.float32)
    assert fuses(q.astype(jnp.bfloat16)) == (jax.default_backend() == "gpu" and width == 64)
    np.testing.assert_allclose(half(q, k, v), definition(q, k, v), atol=0.03)
    gradient = lambda f: jax.grad(lambda *a: jnp.sum(f(*a) ** 2), argnums=(0, 1, 2))(q, k, v)
    for found, expected in zip(gradient(half), gradient(definition), strict=True):
        assert float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)) < 0.03


def test_network_in_bfloat16_is_the_host_s_in_float32():
    sizes = {
        "channels": 4, "latitude": 8, "longitude": 16, "patch": 2, "widths": (64, 128),
        "blocks": ("res", "transformer"), "depth": 1, "heads": 2, "embedding": 64,
    }  # fmt: skip
    single, half = (UViTConfig(**sizes, dtype=dtype) for dtype in ("float32", "bfloat16"))
    params = pure_params(nnx.state(UViT(single, rngs=nnx.Rngs(0))))
    params = jax.tree.map(lambda a: a + 0.05 * jax.random.normal(jax.random.key(a.size), a.shape), params)
    x, inputs = (jax.random.normal(jax.random.key(i), (1, 3, 8, 16, n)) for i, n in enumerate((4, single.forcings)))
    t = jnp.full((1, 3), 0.5)
    here = jax.device_put((params, x, t, inputs), jax.devices("cpu")[0])
    expected = np.asarray(jax.jit(lambda *arrays: apply(graph(single), *arrays))(*here))
    found = jax.jit(lambda *arrays: apply(graph(half), *arrays))(params, x, t, inputs)
    assert float(np.linalg.norm(found - expected) / np.linalg.norm(expected)) < 0.05
