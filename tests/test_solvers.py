"""Order, stability, dense output and bookkeeping of the solvers."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf
from gradflow.solvers.low_rank import LowRankJacobian

from .helpers import separable

SOLVERS = [gf.solvers.Rodas5P(), gf.solvers.RKC2(), gf.solvers.DeflatedRKC2(rank=4)]
# Order of the solution and of the dense output.
ORDERS = {"Rodas5P": (5, 4), "RKC2": (2, 2), "DeflatedRKC2": (2, 2)}
ids = [type(solver).__name__ for solver in SOLVERS]


def pendulum(t, y, args):
    """Smooth, non-linear, driven, with a PyTree state that holds a scalar."""
    t = t.astype(y["q"].dtype)
    pull = jnp.stack([y["q"][1], -jnp.sin(y["q"][0])])
    return {"q": pull + 0.3 * jnp.sin(2 * t), "r": -y["r"] * jnp.cos(t)}


START = {"q": jnp.array([1.0, 0.3]), "r": jnp.array(2.0)}


@eqx.filter_jit
def fixed_steps(solver, steps, times, field=pendulum, y0=START):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        0.0,
        2.0,
        2.0 / steps,
        y0,
        saveat=diffrax.SaveAt(ts=times),
    )
    assert solution.ys is not None
    return solution.ys


@eqx.filter_jit
def one_step(solver, field, y0, t0, t1):
    """The state at the start, and what the step from there to `t1` returns."""
    term = diffrax.ODETerm(field)
    state = solver.init(term, t0, t1, y0, None)
    return state, solver.step(term, t0, t1, y0, None, state, False)


def reference(times):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(pendulum),
        diffrax.Dopri8(),
        0.0,
        2.0,
        0.01,
        START,
        saveat=diffrax.SaveAt(ts=jnp.sort(times)),
        stepsize_controller=diffrax.PIDController(1e-13, 1e-13),
    )
    back = jnp.argsort(jnp.argsort(times))
    assert solution.ys is not None
    return jax.tree.map(lambda y: np.asarray(y[back]), solution.ys)


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_order_by_slope(solver):
    times = jnp.linspace(0, 2, 37)
    exact = reference(times)

    def errors(steps):
        ys = fixed_steps(solver, jnp.asarray(steps), times)
        gaps = [
            jnp.abs(ys["q"] - exact["q"]).max(1),
            jnp.abs(ys["r"] - exact["r"]),
        ]
        at_times = jnp.stack(gaps).max(0)
        return np.array([at_times[-1], at_times.max()])

    slopes = np.log2(errors(16) / errors(32))
    order, dense = ORDERS[type(solver).__name__]
    assert abs(slopes[0] - order) < 0.25
    assert dense - 0.25 < slopes[1] < order + 0.25


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_dense_output_of_one_step(solver):
    # One step from the same start: the error of an interpolant of order q is h^(q+1).
    times = jnp.array([0.21, 0.5, 0.83])
    exact = reference(jnp.concatenate([0.05 * times, 0.1 * times]))

    @jax.jit
    def at_ends_and_inside(h):
        t0 = jnp.zeros_like(h)
        _, (y1, _, info, _, _) = one_step(solver, pendulum, START, t0, h)
        dense = solver.interpolation_cls(t0=t0, t1=h, **info)
        return y1, dense.evaluate(h), jax.vmap(dense.evaluate)(h * times)

    errors = []
    for h, expected in zip((0.05, 0.1), np.split(exact["q"], 2)):
        y1, end, inside = at_ends_and_inside(jnp.asarray(h))
        np.testing.assert_allclose(end["q"], y1["q"], rtol=1e-14)
        errors.append(np.abs(inside["q"] - expected).max())
    slope = np.log2(errors[1] / errors[0])
    assert abs(slope - (ORDERS[type(solver).__name__][1] + 1)) < 0.4


@pytest.mark.parametrize("solver", SOLVERS[1:], ids=ids[1:])
def test_the_estimate_is_the_local_error(solver):
    h = 0.1
    _, (y1, error, _, _, _) = one_step(
        solver, pendulum, START, jnp.array(0.0), jnp.array(h)
    )
    exact = reference(jnp.array([h]))
    true = np.linalg.norm(y1["q"] - exact["q"][0])
    assert 0.6 < np.linalg.norm(error["q"]) / true < 1.2


def test_noise_in_stiff_directions_is_not_taken_for_error():
    # An offset in a direction of rate 1e4: by slopes it is 0.4 * 0.5 * 1e4 times as
    # large, which counts a tenth, and only where no other error is larger.
    rates = jnp.array([1e4, 1.0])

    def step(*y0):
        times = jnp.array(0.0), jnp.array(0.5)
        _, (y1, error, _, _, _) = one_step(
            gf.solvers.RKC2(), lambda t, y, _: -rates * y, jnp.array(y0), *times
        )
        return np.asarray(y1), np.abs(error)

    y1, error = step(1e-6, 1.0)
    assert error[0] < 5e-6
    assert 0.5 < error[1] / abs(y1[1] - np.exp(-0.5)) < 1.5
    y1, error = step(1e-6, 0.0)
    by_slopes = 0.4 * 0.5 * 1e4 * abs(1e-6 + y1[0])
    np.testing.assert_allclose(error[0], 0.1 * by_slopes, rtol=0.01)


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_stable_on_stiff_linear_problem(solver):
    # y' = -A (y - cos t) with eigenvalues from 1 to 1e5: few, long, accurate steps.
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    matrix = jnp.asarray(basis * np.geomspace(1, 1e5, 6) @ basis.T)

    def field(t, y, args):
        return -matrix @ (y - jnp.cos(t)) - jnp.sin(t)

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        0.0,
        10.0,
        0.01,
        jnp.zeros(6),
        stepsize_controller=diffrax.PIDController(1e-3, 1e-3),
    )
    assert solution.stats["num_steps"] < 150 and solution.ys is not None
    offset = basis.T @ -np.ones(6) * np.exp(-10.0 * np.geomspace(1, 1e5, 6))
    exact = np.cos(10.0) + basis @ offset
    np.testing.assert_allclose(solution.ys[0], exact, atol=5e-3)


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_backward_in_time(solver):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: 2 * t * y),
        solver,
        1.0,
        0.0,
        -0.01,
        jnp.array([np.e]),
    )
    assert solution.ys is not None
    np.testing.assert_allclose(solution.ys[0], 1.0, rtol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_step_that_is_not_finite_is_handed_back(solver):
    # Undefined below 0.9, where all but the first stage of a long step lie.
    def field(t, y, args):
        return jnp.where(y < 0.9, jnp.nan, -y)

    y0, t0, t1 = jnp.ones(1), jnp.array(0.0), jnp.array(2.0)
    _, (y1, error, _, _, result) = one_step(solver, field, y0, t0, t1)
    assert result == diffrax.RESULTS.successful
    assert np.all(y1 == y0) and np.all(np.isinf(error))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_state_keeps_structure_and_dtypes(solver, dtype):
    def field(t, y, args):
        return -y[0], jnp.sum(y[0])

    y0 = (jnp.ones(3, dtype), jnp.zeros((), dtype))
    t0, t1 = jnp.array(0.0), jnp.array(0.1)  # float64, whatever the state is
    state, (y1, error, _, new, result) = one_step(solver, field, y0, t0, t1)
    assert result == diffrax.RESULTS.successful
    assert eqx.tree_equal(
        *(jax.tree.map(lambda a: jnp.zeros_like(a), tree) for tree in (state, new))
    )
    for tree in (y1, error):
        assert [leaf.dtype for leaf in jax.tree.leaves(tree)] == [dtype, dtype]
    kept = solver.rejected(state, new, jnp.inf)
    assert jax.tree.structure(kept) == jax.tree.structure(state)
    assert solver.counts(kept)["gradient_evaluations"] > 0


def test_counts_equal_calls():
    calls = []

    def field(t, y, args):
        jax.debug.callback(lambda: calls.append(1))
        return -y

    def work(solver, y0):
        calls.clear()
        term = diffrax.ODETerm(field)
        times = (jnp.array(0.0), jnp.array(0.5))
        state = solver.init(term, *times, y0, None)
        state = solver.step(term, *times, y0, None, state, False)[3]
        jax.effects_barrier()
        return solver.counts(state), len(calls)

    counts, called = work(gf.solvers.RKC2(), jnp.ones(4))
    # A product by `jax.jvp` evaluates the function once too; that of the last one is
    # the evaluation at the end of the step.
    assert called == counts["gradient_evaluations"] + counts["jacobian_products"] - 1
    assert counts["factorizations"] == 0
    np.testing.assert_allclose(counts["spectral_radius"], 1.0, rtol=1e-12)
    counts, _ = work(gf.solvers.Rodas5P(), jnp.ones(4))
    assert counts == {
        "gradient_evaluations": 8,
        "jacobian_products": 4,
        "factorizations": 1,
    }


@pytest.mark.parametrize("backward", [False, True])
def test_quadratures_are_left_out_of_the_linear_algebra_and_change_nothing(backward):
    def field(t, y, args):
        t = t.astype(float)
        z = y["state"]
        inside = jnp.stack([z[1] - 50 * z[0], jnp.cos(t) * z[0] ** 2 - 3 * z[1]])
        first = jnp.stack([z[0] * z[1], jnp.sin(t)])
        return {"first": first, "state": inside, "last": z @ z}

    def reading(t, y, args):
        # All of the state, so that everything is an unknown.
        return jax.tree.map(lambda slope, of: slope + 0 * of, field(t, y, args), y)

    y0 = {"first": jnp.array([1.0, -2.0]), "state": jnp.array([0.5, 2.0])}
    y0["last"] = jnp.array(3.0)
    times = (jnp.array(0.3), jnp.array(0.1 if backward else 0.5))
    solver = gf.solvers.Rodas5P()
    _, (y1, error, info, new, _) = one_step(solver, field, y0, *times)
    _, whole = one_step(solver, reading, y0, *times)
    assert solver.counts(new)["jacobian_products"] == 2
    assert solver.counts(whole[3])["jacobian_products"] == 5
    for ours, theirs in ((y1, whole[0]), (error, whole[1]), (info, whole[2])):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_a_field_of_time_alone_is_integrated():
    times, y0 = (jnp.array(0.3), jnp.array(0.5)), jnp.array([1.0, -2.0])
    solver = gf.solvers.Rodas5P()
    field = lambda t, y, args: jnp.stack([jnp.cos(t), 4 * t**3])  # noqa: E731
    _, (y1, *_) = one_step(solver, field, y0, *times)
    exact = y0 + jnp.array([jnp.sin(0.5) - jnp.sin(0.3), 0.5**4 - 0.3**4])
    np.testing.assert_allclose(y1, exact, rtol=0, atol=1e-7)


def test_rkc2_takes_as_many_stages_as_stability_needs():
    # Real eigenvalues up to 1e4: h * rho = 1e3 takes 1 + sqrt(1 + 1.54 * 1.1 * 1e3).
    rates = jnp.geomspace(1, 1e4, 9)
    solver, y0, times = gf.solvers.RKC2(), jnp.ones(9), (jnp.array(0.0), jnp.array(0.1))
    _, (y1, _, _, new, _) = one_step(solver, lambda t, y, _: -rates * y, y0, *times)
    stages = solver.counts(new)["gradient_evaluations"] - 1
    assert 38 < stages < 44
    assert float(solver.counts(new)["spectral_radius"]) == pytest.approx(1e4, rel=0.01)
    assert np.all(np.abs(y1) < 1)


def test_rkc2_hands_back_steps_beyond_its_stages():
    solver = gf.solvers.RKC2(max_stages=20)
    times = (jnp.array(0.0), jnp.array(1.0))
    _, step = one_step(solver, lambda t, y, args: -1e4 * y, jnp.ones(2), *times)
    y1, error, _, new, _ = step
    assert np.all(np.isinf(error)) and np.all(y1 == 1.0)
    assert solver.counts(new)["gradient_evaluations"] == 1 + 4
    with pytest.raises(ValueError, match="max_stages"):
        gf.solvers.RKC2(max_stages=3)


def test_deflated_stages_need_the_rest_of_the_spectrum_only():
    # Four stiff directions, the rest within 1: RKC2 would take 400 stages.
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(40, 40)))
    values = np.concatenate([[1e5, 3e4, 1e4, 1e3], np.linspace(0, 1, 36)])
    matrix = jnp.asarray(basis * values @ basis.T)
    solver = gf.solvers.DeflatedRKC2(rank=6)

    def field(t, y, args):
        return -matrix @ y

    y0, times = jnp.asarray(basis @ np.ones(40)), (jnp.array(0.0), jnp.array(1.0))
    state, (y1, error, _, new, _) = one_step(solver, field, y0, *times)
    before, after = solver.counts(state), solver.counts(new)
    assert float(before["spectral_radius"]) == pytest.approx(1e5, rel=1e-3)
    assert after["gradient_evaluations"] - before["gradient_evaluations"] < 12
    assert after["jacobian_products"] - before["jacobian_products"] == 3
    gap = np.abs(basis.T @ np.asarray(y1) - np.exp(-values))
    assert gap[:4].max() < 1e-6 and gap[4:].max() < 0.1
    # Off the transient of the stiff part the estimate follows what is left.
    y0 = jnp.asarray(basis @ (values <= 1))
    _, (y1, error, *_) = one_step(solver, field, y0, *times)
    gap = np.abs(np.asarray(y1) - basis @ (np.exp(-values) * (values <= 1)))
    assert 0.5 < np.abs(error).max() / gap.max() < 5


@pytest.mark.parametrize(("dtype", "least"), [("float64", 1.25), ("float32", 2.0)])
def test_deflated_stages_keep_less_safety_while_steps_are_accepted(dtype, least):
    rates = jnp.asarray([1e5, 1e3, 9e2, 1.0], dtype)
    solver, h = gf.solvers.DeflatedRKC2(rank=2), jnp.asarray(1.0, dtype)
    term = diffrax.ODETerm(lambda t, y, args: -rates * y)

    @jax.jit
    def step(y, state):
        return solver.step(term, 0 * h, h, y, None, state, False)

    def stages(before, after):
        after, before = solver.counts(after), solver.counts(before)
        return int(after["gradient_evaluations"] - before["gradient_evaluations"])

    def expected(safety):
        # The bound on the rest is the value of the last direction that is not of it.
        return 2 + np.ceil(np.sqrt(1 + 1.54 * safety * 1e3))

    y = jnp.ones(4, dtype)
    state = solver.init(term, 0 * h, h, y, None)
    before, taken = state, []
    for _ in range(25):
        before = state
        y, _, _, state, _ = step(y, before)
        taken.append(stages(before, state))
    assert abs(taken[0] - expected(2.0)) <= 1
    assert abs(taken[-1] - expected(least)) <= 1
    assert np.all(np.diff(taken) <= 1)
    tried = solver.rejected(before, state, jnp.inf)
    again = stages(tried, step(y, tried)[3])
    # Of the bound half as much more, and of the safety two fifths, up to 2.
    assert abs(again - expected(1.5 * min(2.0, 1.4 * least))) <= 1


def test_deflation_acts_on_the_largest_array():
    # A quadrature beside the state, in the middle of the PyTree.
    def field(t, y, args):
        return {"a": y["b"][:1], "b": -1e3 * y["b"], "c": jnp.ones(2)}

    solver, times = gf.solvers.DeflatedRKC2(rank=5), (jnp.array(0.0), jnp.array(0.1))
    y0 = {"a": jnp.zeros(1), "b": jnp.ones(5), "c": jnp.zeros(2)}
    _, (y1, *_) = one_step(solver, field, y0, *times)
    np.testing.assert_allclose(y1["c"], 0.1, rtol=1e-12)
    np.testing.assert_allclose(y1["b"], 0, atol=1e-6)
    with pytest.raises(ValueError, match="rank"):
        gf.solvers.DeflatedRKC2(rank=0)


def test_deflated_stages_are_stable_for_the_other_arrays():
    # A slow state whose stiff quadrature relaxes to a function of it.
    def field(t, y, args):
        slow = -jnp.arange(1.0, 9.0) / 10 * y["slow"]
        return {"fast": -1e4 * (y["fast"] - jnp.sin(y["slow"][0])), "slow": slow}

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        gf.solvers.DeflatedRKC2(rank=2),
        0.0,
        10.0,
        1e-5,
        {"fast": jnp.ones(1), "slow": jnp.ones(8)},
        stepsize_controller=diffrax.PIDController(1e-4, 1e-4),
    )
    assert solution.ys is not None
    # Without regard to the fast array every step is limited to about 1e-4.
    assert solution.stats["num_steps"] < 200
    np.testing.assert_allclose(
        solution.ys["fast"][0], np.sin(np.exp(-1.0)), rtol=0, atol=2e-3
    )


def test_the_clock_does_not_limit_late_deflated_steps():
    """The equation of t relaxes as s grows, and the network may be less stiff."""
    x, y = separable(n=20, d=4)
    model = gf.models.MLP((4, 8, 1), gf.models.SmoothReLU(0.1), key=jax.random.key(0))
    traj = gf.integrate(
        gf.Problem(model, x, y), to=2e4, saveat=2, solver=gf.solvers.DeflatedRKC2()
    )
    assert traj.stats["deflated_radius"] < 0.5
    assert traj.stats["steps"] < 400


def test_zero_jacobian():
    # Nothing for the power iteration to find; the solution is exact.
    for solver in SOLVERS:
        ys = fixed_steps(
            solver, 3, jnp.array([2.0]), lambda t, y, a: jnp.ones(2), jnp.zeros(2)
        )
        np.testing.assert_allclose(ys[0], 2.0, rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS, ids=ids)
def test_no_recompilation(solver):
    term = diffrax.ODETerm(lambda t, y, args: -args * y)

    @eqx.filter_jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def step(t0, t1, y0, args, state):
        return solver.step(term, t0, t1, y0, args, state, False)

    y, t = jnp.ones(2), jnp.array(0.0)
    state = solver.init(term, t, t, y, jnp.array(1.0))
    for h, rate in ((0.1, 1.0), (0.5, 1e3)):
        y, _, _, state, _ = step(t, t + h, y, jnp.array(rate), state)


@pytest.mark.parametrize(("k", "expected"), [(128, "Rodas5P"), (129, "DeflatedRKC2")])
def test_choice(k, expected):
    model = gf.models.TwoLayer(1, k, key=jax.random.key(0))
    problem = gf.Problem(model, jnp.array([[1.0], [-1.0]]), jnp.array([1.0, -1.0]))
    assert problem.k == k
    assert type(gf.solvers.choose(problem)).__name__ == expected


def test_too_long_a_step_is_no_reason_to_doubt_the_bound():
    """Every failed step doubted it once, without limit, and a flow stood still."""
    jacobian = LowRankJacobian.start(5, 2, jnp.float64)
    jacobian = eqx.tree_at(lambda j: j.bound, jacobian, jnp.array(3.0))
    assert jacobian.doubted(jnp.array(jnp.inf)).bound == 3.0
    assert jacobian.doubted(jnp.array(1e9)).bound > 3.0

    # Late in a flow the controller asks for steps of any length.
    problem = gf.Problem(gf.models.Linear(8), *separable(n=30, d=8))
    solver = gf.solvers.DeflatedRKC2(rank=2, max_stages=10)
    traj = gf.integrate(problem, to=2000.0, saveat=2, solver=solver)
    assert traj.stats["rejected_steps"] > 0
    assert traj.stats["deflated_radius"] < 10 * traj.stats["spectral_radius"]


def _normalized_margins(snap):
    return {"normalized_margins": snap.margins / snap.rho**2}


@pytest.mark.parametrize("solver", SOLVERS[1:], ids=ids[1:])
def test_stabilised_and_dense_solver_agree_on_a_network(solver):
    x, y = separable(n=12, d=3)
    model = gf.models.MLP((3, 6, 1), gf.models.SmoothReLU(0.3), key=jax.random.key(0))
    problem = gf.Problem(model, x, y)
    options = {"to": 30.0, "saveat": [10.0, 30.0]}
    options["diagnostics"] = (_normalized_margins,)
    exact = gf.integrate(problem, solver=gf.solvers.Rodas5P(), rtol=1e-6, **options)
    ours = gf.integrate(problem, solver=solver, rtol=1e-4, **options)
    np.testing.assert_allclose(
        ours["normalized_margins"], exact["normalized_margins"], rtol=1e-3
    )
    assert ours.stats["steps"] < 300
