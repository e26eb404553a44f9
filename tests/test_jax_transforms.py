"""The JAX package's functions under JAX's transformations."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from reference import assert_close, assert_same_bits

jax = pytest.importorskip("jax", reason="JAX is not installed")
import jax.numpy as jnp  # noqa: E402
from jax import export  # noqa: E402
from jax_cases import H, L, N, draw, function, run_by_scan  # noqa: E402

import elman  # noqa: E402
import elman.jax  # noqa: E402
from elman.jax import require  # noqa: E402

pytestmark = pytest.mark.usefixtures("jax_compiles_quickly")


@pytest.fixture(autouse=True)
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def assert_all(check, got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        check(a, b)


def losses(cell, extents, reverse=False):
    """A number of which no derivative is constant: ours, and by a scan."""

    def loss(run, *inputs):
        results = run(*inputs)
        return sum((a**3).sum() for a in jax.tree.leaves(results))

    ours = function(cell, reverse=reverse, **extents)
    plain = partial(run_by_scan, cell, extents=extents, reverse=reverse)
    return partial(loss, ours), partial(loss, plain)


def tangents(inputs, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), inputs)


every = (0, 1, 2)


def along(moved, f, *inputs):
    return jax.jvp(f, inputs, moved)[1]


DERIVATIVES = {
    "forward": lambda moved, f, *inputs: along(moved, f, *inputs),
    "reverse of forward": lambda moved, f, *inputs: jax.grad(partial(along, moved, f), every)(
        *inputs
    ),
    "forward of reverse": lambda moved, f, *inputs: along(moved, jax.grad(f, every), *inputs),
}


@pytest.mark.parametrize(
    ("cell", "reverse", "derivative"),
    [
        ("lstm", True, "forward"),
        ("gru_reset_before", False, "forward"),
        ("rnn_tanh", False, "reverse of forward"),
        ("gru", True, "forward of reverse"),
    ],
)
def test_forward_mode_and_second_derivatives(cell, reverse, derivative):
    """Against a scan, which JAX differentiates by itself, in float64."""
    inputs, _, extents = draw(cell, "both", "float64", shape=(4, 3, 2, 3))
    inputs, moved = jax.tree.map(jnp.asarray, inputs), tangents(inputs)
    of = partial(DERIVATIVES[derivative], moved)
    got, want = (jax.jit(partial(of, f))(*inputs) for f in losses(cell, extents, reverse))
    assert_all(assert_close, got, want)


def test_a_hessian_and_jacobians():
    (weights, x, h_0), _, _ = draw("rnn_tanh", dtype="float64", shape=(3, 2, 2, 2))

    def final(run, h_0):
        return run(weights, x, h_0)[1]

    ours, by_scan = (
        partial(final, f) for f in (elman.jax.rnn, partial(run_by_scan, "rnn_tanh", extents={}))
    )
    for derivative in (jax.jacfwd, jax.jacrev, lambda f: jax.jacrev(jax.jacrev(f))):
        got, want = (jax.jit(derivative(f))(jnp.asarray(h_0)) for f in (ours, by_scan))
        assert_close(got, want)


def members(cell, extent, count=3):
    """Several calls, stacked, and one by one."""
    each = [draw(cell, extent, seed=seed) for seed in range(count)]
    return jax.tree.map(lambda *a: jnp.stack(a), *each), each


MAPPED = {
    "inputs": (None, 0, 0),
    "weights": (0, None, None),
    "all": (0, 0, 0),
}


@pytest.mark.parametrize("extent", ["whole", "both"])
@pytest.mark.parametrize("mapped", MAPPED)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_vmap(cell, mapped, extent):
    """Each member has the bits that it has alone: results, and gradients of all."""
    (inputs, _, extents), each = members(cell, extent)
    axes = MAPPED[mapped]
    ours = function(cell)

    def gradients(inputs, extents):
        def loss(*inputs):
            output, final = ours(*inputs, **extents)
            return sum((a**2).sum() for a in jax.tree.leaves((output, final)))

        return ours(*inputs, **extents), jax.grad(loss, (0, 1, 2))(*inputs)

    def chosen(stacked, one):
        return tuple(a if axis == 0 else b for axis, a, b in zip(axes, stacked, one, strict=True))

    first, _, _ = each[0]
    with require("kernel"):
        got = jax.jit(jax.vmap(gradients, (axes, 0)))(chosen(inputs, first), extents)
        of_x = jax.jit(jax.vmap(lambda *a: gradients(*a)[1][1], (axes, 0)))
        d_x = of_x(chosen(inputs, first), extents)
    alone = jax.jit(gradients)
    want = [alone(chosen(own, first), own_extents) for own, _, own_extents in each]
    assert_all(assert_same_bits, got, jax.tree.map(lambda *a: np.stack(a), *want))
    assert_same_bits(d_x, got[1][1])


def test_vmap_over_inputs_is_one_batch_and_over_weights_one_call():
    (inputs, _, _), each = members("gru", "whole")
    (weights, _, _), _, _ = each[0]
    for own, mapped in ((weights, (None, 0)), (inputs[0], (0, 0))):
        run = jax.vmap(lambda weights, x: elman.jax.gru(weights, x)[0], mapped)
        text = jax.jit(run).lower(own, inputs[1]).as_text()
        calls = [line for line in text.splitlines() if "@elman_forward" in line]
        assert len(calls) == 1
        assert (f"tensor<{L}x{3 * N}x{H}xf32>" in calls[0]) == (mapped == (None, 0))


def test_vmap_of_a_vmap_and_along_other_axes():
    (inputs, _, _), _ = members("gru", "whole")
    weights, x, h_0 = inputs
    xs = jnp.stack([x, 2 * x], -1)  # (members, L, N, D, 2)

    @jax.jit
    def d_weights(weights, x, h_0):
        return jax.grad(lambda w: (elman.jax.gru(w, x, h_0)[0] ** 2).sum())(weights)

    got = jax.jit(jax.vmap(jax.vmap(d_weights, (None, -1, None))))(weights, xs, h_0)
    for k, scale in enumerate((1, 2)):
        for m in range(3):
            own = jax.tree.map(lambda a, m=m: a[m], (weights, x, h_0))
            want = d_weights(own[0], scale * own[1], own[2])
            assert_all(assert_same_bits, jax.tree.map(lambda a: a[m, k], got), want)  # noqa: B023


def test_vmap_of_forward_mode():
    (weights, x, h_0), _, _ = draw("gru", "whole", "float64")
    several = tangents(np.stack([x] * 3))

    def along(run, v):
        return jax.jvp(lambda x: run(weights, x, h_0)[0], [jnp.asarray(x)], [v])[1]

    got = jax.vmap(partial(along, elman.jax.gru))(several)
    want = jax.vmap(partial(along, partial(run_by_scan, "gru", extents={})))(several)
    assert_close(got, want)


@pytest.mark.parametrize("shape", [(0, 4, 2, 3), (3, 0, 2, 3), (3, 4, 0, 3)])
def test_vmap_of_nothing(shape):
    """Over no members, and of members without steps or rows: shapes, and what is left of h_0."""
    (weights, _, _), _, _ = draw("gru")
    x, h_0 = jnp.zeros(shape, "float32"), jnp.ones((*shape[:1], shape[2], H), "float32")

    def loss(x, h_0):
        output, h_n = elman.jax.gru(weights, x, h_0)
        return output.sum() + 2 * h_n.sum()

    d_x, d_h_0 = jax.jit(jax.vmap(jax.grad(loss, (0, 1))))(x, h_0)
    assert d_x.shape == shape
    if shape[1] == 0:
        assert_same_bits(d_h_0, 2 * h_0)
    else:
        assert (d_h_0.shape, d_h_0.size) == (h_0.shape, 0)


def test_where_jit_is_disabled():
    """As one debugs: each operation is compiled by itself, this one too."""
    (weights, x, h_0), _, extents = draw("gru", "both")

    def run(weights):
        output, h_n = elman.jax.gru(weights, x, h_0, **extents)
        return (output**2).sum() + h_n.sum(), output

    gradients = jax.value_and_grad(run, has_aux=True)
    want = gradients(weights)
    with jax.disable_jit():
        assert_all(assert_same_bits, jax.jit(gradients)(weights), want)


def test_within_scan_and_remat():
    """Chunks with the state carried have the whole's bits, and its gradients but for rounding."""
    (weights, x, states), _, _ = draw("lstm")

    def in_chunks(weights, x, states):
        def chunk(states, x):
            output, states = jax.checkpoint(elman.jax.lstm)(weights, x, states)
            return states, output

        states, output = jax.lax.scan(chunk, states, x.reshape(3, 2, *x.shape[1:]))
        return output.reshape(L, N, H), states

    got = jax.jit(in_chunks)(weights, x, states)
    assert_all(assert_same_bits, got, elman.jax.lstm(weights, x, states))

    def gradients(run):
        def loss(*inputs):
            return sum((a**2).sum() for a in jax.tree.leaves(run(*inputs)))

        with require("kernel"):
            return jax.jit(jax.grad(loss, (0, 1, 2)))(weights, jnp.asarray(x), states)

    got, want = gradients(in_chunks), gradients(elman.jax.lstm)
    assert_all(assert_close, got, want)
    again = gradients(lambda *inputs: jax.checkpoint(elman.jax.lstm)(*inputs))
    assert_all(assert_same_bits, again, want)


ALLOWED = [
    export.DisabledSafetyCheck.custom_call(name) for name in ("elman_forward", "elman_backward")
]


def test_export():
    """For several devices at once, gradients too, by way of bytes."""
    (weights, x, h_0), _, extents = draw("gru", "both")

    def step(weights, x):
        def loss(weights):
            return (elman.jax.gru(weights, x, h_0, **extents)[0] ** 2).sum()

        return jax.value_and_grad(loss)(weights)

    jitted = jax.jit(step)
    exported = export.export(jitted, platforms=["cpu", "cuda"], disabled_checks=ALLOWED)(weights, x)
    again = export.deserialize(exported.serialize())
    assert_all(assert_same_bits, jax.jit(again.call)(weights, x), jitted(weights, x))


def test_export_of_any_batch():
    (weights, x, _), _, _ = draw("gru")
    shape = export.symbolic_shape("L, N, 3")
    jitted = jax.jit(lambda x: elman.jax.gru(weights, x)[0])
    exported = export.export(jitted, disabled_checks=ALLOWED)(
        jax.ShapeDtypeStruct(shape, np.float32)
    )
    for rows in (1, N):
        assert_same_bits(exported.call(x[1:, :rows]), jitted(x[1:, :rows]))


SHARDED = """
import jax, numpy as np
from functools import partial
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import elman.jax
from jax_cases import draw

devices = jax.devices()
assert len(devices) == 4
mesh = Mesh(np.array(devices), ("rows",))
(weights, x, h_0), _, extents = draw("gru", "both", shape=(6, 8, 3, 9))
lengths, reset = extents.values()
arguments = weights, x, h_0, lengths, reset
specs = P(), P(None, "rows"), P("rows"), P("rows"), P(None, "rows")
sharded = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arguments, specs)]

def run(weights, x, h_0, lengths, reset):
    return elman.jax.gru(weights, x, h_0, lengths=lengths, reset=reset)

def loss(run, weights, x, *others):
    output, h_n = run(weights, x, *others)
    return (output**2).sum() + (h_n**2).sum()

def same(a, b):
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))

def close(d, d_want):  # summed over the devices, in another order
    for name in d_want:
        np.testing.assert_allclose(d[name], d_want[name], rtol=1e-5, atol=1e-5)

def gathers(f):
    return "all-gather" in jax.jit(f).lower(*sharded).compile().as_text()

gradients = jax.grad(partial(loss, run), (0, 1))
want, d_want = run(*arguments), gradients(*arguments)
by_shardy = jax.config.jax_use_shardy_partitioner
with elman.jax.require("kernel"):
    got = jax.jit(run)(*sharded)
    same(got, want)
    assert gathers(run) != by_shardy
    assert got[0].sharding.spec == (P(None, "rows") if by_shardy else P())
    d_weights, d_x = jax.jit(gradients)(*sharded)
    same(d_x, d_want[1])
    close(d_weights, d_want[0])
    assert gathers(gradients) != by_shardy

    reversed = partial(elman.jax.gru, reverse=True)
    same(jax.jit(reversed)(*sharded[:2]), reversed(weights, x))

    # Rows that are not sharded, or not into equal parts; and what lies between both ways is not.
    everywhere = NamedSharding(mesh, P())
    def gathered_between(weights, x, *others):
        results, vjp = jax.vjp(lambda weights, x: run(weights, x, *others), weights, x)
        vjp = jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, everywhere), vjp)
        return vjp(jax.tree.map(lambda a: 2 * a, results))
    d_weights, d_x = jax.jit(gathered_between)(*sharded)
    same(d_x, d_want[1])
    close(d_weights, d_want[0])
    fewer = weights, x[:, :5], h_0[:5]
    of_fewer = jax.grad(partial(loss, elman.jax.gru), (0, 1))
    def unequal(weights, x, h_0):
        h_0 = jax.lax.with_sharding_constraint(h_0, NamedSharding(mesh, P("rows")))
        return of_fewer(weights, x, h_0)
    d_weights, d_x = jax.jit(unequal)(*jax.device_put(fewer, everywhere))
    d_fewer = of_fewer(*fewer)
    same(d_x, d_fewer[1])
    close(d_weights, d_fewer[0])

    # Each device's own rows, by whoever divides them.
    if hasattr(jax, "shard_map"):
        parted = partial(jax.shard_map, check_vma=False)
    else:
        from jax.experimental.shard_map import shard_map
        parted = partial(shard_map, check_rep=False)
    parted = parted(run, mesh=mesh, in_specs=specs, out_specs=(P(None, "rows"), P("rows")))
    got = jax.jit(parted)(*sharded)
    same(got, want)
    assert got[0].sharding.spec == P(None, "rows")
    assert not gathers(parted)
    d_weights, d_x = jax.jit(jax.grad(partial(loss, parted), (0, 1)))(*sharded)
    same(d_x, d_want[1])
    close(d_weights, d_want[0])
"""


def test_a_batch_on_several_devices():
    flags = "--xla_force_host_platform_device_count=4"
    here = os.path.dirname(__file__)
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "PYTHONPATH": os.pathsep.join([here, *sys.path]),
    }
    subprocess.run([sys.executable, "-c", SHARDED], check=True, env=environment, timeout=300)
