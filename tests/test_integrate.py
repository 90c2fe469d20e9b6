"""`integrate` against closed forms, SciPy, and its own promises."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gradflow as gf
from gradflow import _saving
from gradflow._arguments import (
    checked_clock,
    checked_diagnostics,
    checked_limits,
    checked_saves,
)
from gradflow._clocks import chosen

from .helpers import separable


def _one_example(depth, value=0.9, scale=1.3):
    """`depth` scalar layers of equal weight `value` on the example x = `scale`."""
    model = gf.models.DeepLinear((1,) * (depth + 1), key=jax.random.key(0))
    model = jax.tree.map(lambda w: jnp.full_like(w, value), model)
    return gf.Problem(
        model, jnp.array([[scale]]), jnp.array([1.0]), loss=gf.Exponential()
    )


def _exact_log_time(s0, s, depth, x):
    """ln t of the growth law dR/dt = K x^(2/K) (ln R)^(2 - 2/K), R = e^s.

    For K = 1 and 2 in closed form (K = 2 by the logarithmic integral, li(e^s) = Ei(s));
    Theory III, Section 11.1.2.
    """
    s0, s, x = mp.mpf(s0), mp.mpf(s), mp.mpf(x)
    if depth == 1:
        return mp.log(mp.exp(s) - mp.exp(s0)) - 2 * mp.log(x)
    if depth == 2:
        return mp.log((mp.ei(s) - mp.ei(s0)) / (2 * x))
    power = 2 - mp.mpf(2) / depth
    grid = [s0, *[s - c for c in (40, 10, 3, 1) if s - c > s0], s]
    integral = mp.quad(lambda p: mp.exp(p - s) * p**-power, grid)
    return s + mp.log(integral / (depth * x ** (mp.mpf(2) / depth)))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_growth_law_of_one_example(depth):
    problem = _one_example(depth)
    traj = gf.integrate(problem, to=2000.0, rtol=1e-10, saveat=[20.0, 100.0, 700.0])
    s0, x = traj.s[0], 1.3
    for s, rho, log_t in zip(traj.s[1:], traj["rho"][1:], traj["log_t"][1:]):
        # One example: the margin is s itself, x * prod of equal layers.
        assert rho == pytest.approx(np.sqrt(depth) * (s / x) ** (1 / depth), rel=1e-8)
        exact = float(_exact_log_time(s0, s, depth, x))
        assert log_t == pytest.approx(exact, rel=1e-6)


def test_clock_by_default():
    x, y = separable(n=6)
    linear = gf.models.Linear(3)
    deep = gf.models.DeepLinear((3, 2, 1), key=jax.random.key(0))
    for model, loss, name in (
        (linear, gf.Logistic(), "SmoothedMarginTime"),
        (linear, gf.Squared(), "LogRiskTime"),
        (deep, gf.Logistic(), "LogRiskTime"),
    ):
        problem = gf.Problem(model, x, y, loss=loss)
        assert type(chosen(problem)).__name__ == name


def test_linear_flow_on_hard_data_against_scipy():
    """Breast cancer while it is not yet separated, where the gradient almost vanishes;
    loose tolerances cost accuracy, but no step is rejected and the clock holds."""
    problem = gf.Problem(gf.models.Linear(31), *gf.datasets.breast_cancer())
    at = [2.0, 3.5, 5.0, 20.0]

    @jax.jit
    def rate(theta):
        _, g = problem.log_risk_and_direction(theta)
        return g / (g @ g)

    jacobian = jax.jit(jax.jacfwd(rate))
    start = float(problem.log_risk_time(problem.log_risk(problem.theta)))
    exact = solve_ivp(
        lambda s, z: np.asarray(rate(z)),
        (start, at[-1]),
        np.asarray(problem.theta),
        "Radau",
        at,
        rtol=1e-8,
        atol=1e-10,
        jac=lambda s, z: np.asarray(jacobian(z)),
    )
    margins = np.stack([problem.margins(jnp.asarray(theta)) for theta in exact.y.T])
    for rtol in (1e-2, 1e-4):
        traj = gf.integrate(problem, to=at[-1], rtol=rtol, saveat=at)
        gaps = np.abs(traj["margins"][1:] - margins)
        carrying = margins < margins.min(axis=1, keepdims=True) + 10
        assert np.max(gaps[carrying]) < 10 * rtol
        assert traj.stats["rejected_steps"] <= 1


def test_margins_and_path_length_against_scipy():
    """Two-layer flow in log-risk time by Radau at 1e-10, path length by quadrature."""
    x, y = separable(n=6)
    model = gf.models.DeepLinear((3, 2, 1), key=jax.random.key(3))
    problem = gf.Problem(model, x, y)
    traj = gf.integrate(problem, to=30.0, rtol=1e-8, saveat=[3.0, 9.0, 29.0])

    @jax.jit
    def rate(theta):
        _, g = problem.log_risk_and_direction(theta[:-1])
        theta = theta[:-1]
        rho2 = theta @ theta
        spherical = g - (g @ theta) / rho2 * theta
        dzeta = jnp.linalg.norm(spherical) / (g @ g) / jnp.sqrt(rho2)
        return jnp.concatenate([g / (g @ g), dzeta[None]])

    start = np.append(np.asarray(problem.theta), 0.0)
    exact = solve_ivp(
        lambda s, z: np.asarray(rate(z)),
        (traj.s[0], traj.s[-1]),
        start,
        method="Radau",
        t_eval=traj.s[1:],
        rtol=1e-10,
        atol=1e-12,
    )
    for row, z in enumerate(exact.y.T, start=1):
        margins = problem.margins(jnp.asarray(z[:-1]))
        np.testing.assert_allclose(traj["margins"][row], margins, atol=1e-5)
        assert traj["path_length"][row] == pytest.approx(z[-1], rel=1e-5)


@pytest.fixture(scope="module")
def turning():
    """A linear flow, s-values, and its path lengths between them: chords between 40
    points in each interval of a run at rtol 1e-9."""
    x, y = separable(n=6)
    problem = gf.Problem(gf.models.Linear(3), x, y)
    start = float(problem.log_risk_time(problem.log_risk(problem.theta)))
    s = np.geomspace(1.0, 1000.0, 25)
    s = s[s > start]
    parts = np.arange(40) / 40
    between = np.append((s[:-1, None] + np.diff(s)[:, None] * parts).ravel(), s[-1])
    theta = gf.integrate(
        problem,
        to=1000.0,
        rtol=1e-9,
        saveat=between,
        diagnostics=(gf.diagnostics.parameters,),
    )["theta"]
    theta = theta[1:] / np.linalg.norm(theta[1:], axis=1, keepdims=True)
    chords = np.linalg.norm(np.diff(theta, axis=0), axis=1)
    return problem, s, chords.reshape(len(s) - 1, 40).sum(axis=1)


# Rodas5P's own error is far below its tolerance of 1e-4 here; the others' directions
# are off by up to 2e-3 of an increment.
@pytest.mark.parametrize(
    "solver, error",
    [
        (gf.solvers.Rodas5P(), 1e-4),
        (gf.solvers.RKC2(), 5e-3),
        (diffrax.Kvaerno5(), 5e-3),
    ],
    ids=["Rodas5P", "RKC2", "Kvaerno5"],
)
def test_every_increment_of_the_path_length(turning, solver, error):
    """An integral of |G_perp| over the stages was off by 30 to 110 % here."""
    problem, s, exact = turning
    found = gf.integrate(problem, to=1000.0, saveat=s, solver=solver)
    increments = np.diff(found["path_length"][1:])
    np.testing.assert_allclose(increments, exact, rtol=error)


CLOCKS = [
    gf.LogRiskTime(),
    gf.LogRiskTime(arc_length=0.0),
    gf.PhysicalTime(),
    gf.SmoothedMarginTime(),
    gf.LogNormTime(),
]


@pytest.mark.parametrize("clock", CLOCKS, ids=lambda c: str(c))
def test_every_clock_runs_along_the_same_curve(clock):
    x, y = separable(n=6)
    problem = gf.Problem(gf.models.Linear(3), x, y, loss=gf.Exponential())
    # Margins are positive from the start, as the log-norm clock needs.
    problem = eqx.tree_at(lambda p: p.theta, problem, jnp.array([1.0, 0.1, 0.0]))
    reference = gf.integrate(problem, to=12.0, rtol=1e-10, saveat=[4.0, 8.0])
    traj = gf.integrate(problem, to=12.0, rtol=1e-8, saveat=[4.0, 8.0], clock=clock)
    np.testing.assert_allclose(traj["margins"], reference["margins"], atol=1e-5)
    np.testing.assert_allclose(traj["log_t"][1:], reference["log_t"][1:], atol=1e-5)
    np.testing.assert_allclose(traj["path_length"], reference["path_length"], atol=1e-5)


class _Growing(gf.LogRiskTime):
    """Log-risk time with another growth taken out than the flow's own."""

    def growth(self, t):
        return (1 + t) ** 0.5

    def at_start(self, rho, degree):
        return self


@pytest.mark.parametrize(
    "solver", [gf.solvers.Rodas5P(), gf.solvers.DeflatedRKC2(), diffrax.Tsit5()]
)
def test_the_curve_is_the_same_whatever_growth_is_taken_out(solver):
    model = gf.models.MLP((3, 4, 1), gf.models.SmoothReLU(0.1), key=jax.random.key(1))
    problem = gf.Problem(model, *separable(n=6))
    options = {"to": 12.0, "saveat": [4.0, 8.0]}
    reference = gf.integrate(problem, **options, rtol=1e-10)
    traj = gf.integrate(problem, **options, rtol=1e-7, solver=solver, clock=_Growing())
    for name in ("margins", "rho", "log_t", "path_length"):
        np.testing.assert_allclose(traj[name], reference[name], rtol=1e-5, atol=1e-5)


def test_log_risk_time_spares_solvers_the_growth_of_the_norm():
    t = jnp.array(7e3)
    assert gf.LogRiskTime().growth(t) is None
    for degree in (None, 1.0):
        assert gf.LogRiskTime().at_start(1.0, degree).growth(t) is None
    grown = gf.LogRiskTime(0.5).at_start(1.0, 3.0)
    assert grown.arc_length == 0.5
    assert grown.growth(jnp.zeros(())) == 1
    assert grown.growth(t) == pytest.approx(2.0)


SOLVERS = [
    gf.solvers.Rodas5P(),
    gf.solvers.RKC2(),
    gf.solvers.DeflatedRKC2(),
    diffrax.Tsit5(),
    diffrax.Dopri8(),
    diffrax.Kvaerno5(),
    diffrax.HalfSolver(diffrax.Kvaerno3()),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_every_solver_is_accepted_and_counts_its_work(solver):
    problem = gf.Problem(gf.models.Linear(3), *separable(n=6))
    traj = gf.integrate(problem, to=6.0, rtol=1e-5, saveat=5, solver=solver)
    assert traj.result is gf.Result.reached
    np.testing.assert_allclose(traj.s, np.linspace(traj.s[0], 6.0, 5), atol=1e-8)
    assert np.max(np.abs(traj["clock_correction"])) < 1e-3
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        assert traj.stats["gradient_evaluations"] >= 2 * traj.stats["steps"]


def test_a_root_finder_keeps_the_tolerances_that_it_has():
    norm = jnp.linalg.norm
    finder = diffrax.VeryChord(rtol=1e-10, atol=1e-12, norm=lambda y: norm(y[0]))
    problem = gf.Problem(gf.models.Linear(3), *separable(n=6))
    for own, solver in (
        (False, diffrax.Kvaerno3()),
        (True, diffrax.Kvaerno3(root_finder=finder)),
    ):
        traj = gf.integrate(problem, to=3.0, rtol=1e-3, solver=solver)
        assert ("rtol=1e-10, atol=1e-12" in traj.config["solver"]) is own
        assert ("rtol=0.001, atol=0.001" in traj.config["solver"]) is not own


def test_the_clock_is_corrected_by_what_each_step_may_be_off():
    model = gf.models.DeepLinear((3, 2, 1), key=jax.random.key(0))
    problem = gf.Problem(model, *separable(n=6))
    rtol, to = 1e-3, 500.0
    traj = gf.integrate(problem, to=to, rtol=rtol, solver=gf.solvers.RKC2())
    drift = np.max(np.abs(traj["clock_drift"]))
    corrected = np.abs(traj["clock_correction"][-1])
    # A step of length ds may be off by 3 rtol times the larger of 1 and sqrt(s ds), and
    # the lengths of m steps add up to `to`.
    steps = traj.stats["steps"]
    assert 5 * drift < corrected < 3 * rtol * (steps + np.sqrt(steps) * to)


def test_saved_points_are_found_in_few_passes():
    calls = []

    def function(t):
        calls.append(t)
        return jnp.exp(t) - 2

    low, high = ((jnp.array(t), jnp.exp(t) - 2) for t in (0.0, 1.0))
    with jax.disable_jit():
        found = _saving.root(function, low, high, 1e-12)
    np.testing.assert_allclose(found, np.log(2), atol=1e-12)
    # Of order 1.44 from 0.2 to 1e-12: 8, and one that bisects. Bisection takes 38.
    assert len(calls) <= 9


def test_saved_points_do_not_influence_the_steps():
    problem = gf.Problem(gf.models.Linear(3), *separable(n=6))
    points = (2, 150, np.linspace(1.0, 50.0, 149))
    few, many, other = (gf.integrate(problem, to=50.0, saveat=k) for k in points)
    assert len(many.s) == len(other.s)
    np.testing.assert_array_equal(other.theta, many.theta)
    # Another number of them is another executable, with roundings of its own.
    assert few.stats["steps"] == many.stats["steps"]
    np.testing.assert_allclose(few.theta, many.theta, rtol=1e-13)


def test_tiny_initialisation_reaches_the_end_in_few_steps():
    x, y = gf.datasets.iris()
    steps = []
    for scale in (1.0, 1e-6):
        model = gf.models.MLP(
            (x.shape[1], 5, 5, 1),
            gf.models.SmoothReLU(1e-2),
            key=jax.random.key(0),
            scale=scale,
        )
        traj = gf.integrate(gf.Problem(model, x, y), to=1000.0, rtol=1e-5)
        assert traj.certificate().passed, traj.certificate()
        steps.append(traj.stats["steps"])
    assert max(steps) <= 400


def test_nothing_is_compiled_twice_and_little_at_first(caplog):
    x, y = separable(n=11)  # As no other test has, which would have compiled it.
    first, second = (
        gf.Problem(gf.models.DeepLinear((3, 2, 1), key=jax.random.key(k)), x, y)
        for k in range(2)
    )

    def compilations(**arguments):
        caplog.clear()
        with jax.log_compiles():
            traj = gf.integrate(saveat=10, **arguments)
        found = [r.getMessage() for r in caplog.records]
        return traj, [m for m in found if m.startswith("Compiling jit")]

    # Two of them are the flow's; the others should be few, whatever they do: on arrays
    # one by one, JAX compiles each operation for each shape.
    _, anew = compilations(problem=first, to=10.0, rtol=1e-4)
    assert 2 <= len(anew) <= 12
    again, anew = compilations(problem=second, to=20.0, rtol=1e-5)
    assert again.stats["compile_seconds"] == 0.0 and not anew


def test_float32_reaches_far_and_agrees():
    x, y = separable(n=8)
    model = gf.models.DeepLinear((3, 4, 1), key=jax.random.key(1))
    single = jax.tree.map(lambda w: w.astype(jnp.float32), model)
    double = gf.integrate(gf.Problem(model, x, y), to=1842.0, rtol=1e-4)
    float32 = gf.integrate(
        gf.Problem(single, x.astype(jnp.float32), y), to=1842.0, rtol=1e-4
    )
    assert float32.theta.dtype == jnp.float32
    np.testing.assert_allclose(
        float32["normalized_margins"][-1], double["normalized_margins"][-1], rtol=1e-3
    )
    with pytest.warns(UserWarning, match="In float32 margins near 100000 are rounded"):
        gf.integrate(gf.Problem(single, x.astype(jnp.float32), y), to=1e5, max_steps=2)


def test_parameters_decide_the_precision():
    """Regression: float32 parameters on data in float64 raised an error of JAX."""
    x, y = separable(n=6)
    model = gf.models.MLP((3, 4, 1), gf.models.SmoothReLU(0.1), key=jax.random.key(1))
    single = jax.tree.map(lambda w: w.astype(jnp.float32), model)
    problem = gf.Problem(single, np.asarray(x, np.float64), y)
    assert problem.outputs(problem.theta).dtype == problem.x.dtype == jnp.float32
    assert gf.integrate(problem, to=10.0).result is gf.Result.reached
    problem = gf.Problem(model, x.astype(jnp.float32), y)
    assert problem.outputs(problem.theta).dtype == problem.x.dtype == jnp.float64


def test_points_even_in_the_logarithm_include_both_ends():
    for s0 in np.random.default_rng(0).normal(size=200):
        points = checked_saves(5, s0, 2e4)
        assert (points[0], points[-1]) == (s0, 2e4)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"to": -5.0}, r"`to=-5` is not beyond the start"),
        ({"to": np.inf}, "`to` must be a finite number"),
        ({"solver": "rk4"}, "`solver` must be a Diffrax solver"),
        ({"solver": diffrax.Euler()}, "has no error estimate"),
        ({"solver": diffrax.KenCarp4()}, "systems of several terms"),
        ({"rtol": 0.0}, "`rtol` must lie in"),
        ({"atol": -1.0}, "`atol` must be a number from 0 on"),
        ({"saveat": 1}, "at least 2 points"),
        ({"saveat": [3.0, 2.0]}, "increasing finite s-values"),
        ({"saveat": [np.nan]}, "increasing finite s-values"),
        ({"saveat": "all"}, "increasing finite s-values; got 'all'"),
        ({"saveat": [3.0, 2000.0]}, "outside the flow's range"),
        ({"max_steps": -1}, "`max_steps` must be a number from 0 on"),
        ({"patience": -1}, "`patience` must be a number from 0 on"),
        ({"diagnostics": (lambda snap: snap.theta,)}, "expected a dict of arrays"),
        ({"diagnostics": (lambda snap: {"s": snap.s},)}, r"returned \['s'\], which"),
        ({"folder": __file__}, "is a file"),
        ({"clock": gf.LogNormTime()}, "needs parameters that are not all zero"),
    ],
)
def test_bad_settings_are_named(options, match):
    problem = gf.Problem(gf.models.Linear(3), *separable(n=6))
    with pytest.raises(ValueError, match=match):
        gf.integrate(problem, **({"to": 10.0} | options))


ONE = gf.Problem(gf.models.Linear(1), np.ones((1, 1)), np.ones(1), one_class=True)


@pytest.mark.parametrize(
    "check, value, match",
    [
        (lambda to: checked_saves(2, 0.0, to), "far", "`to` must be a finite number"),
        (lambda to: checked_saves(2, 0.0, to), 9j, "`to` must be a finite number"),
        (lambda n: checked_limits(max_seconds=n), "60", "`max_seconds` must be a num"),
        (lambda n: checked_limits(max_steps=n), 2.5, "`max_steps` must be a whole num"),
        (checked_diagnostics, gf.diagnostics.standard, "a sequence of functions"),
        (checked_diagnostics, ("alignment",), "a sequence of functions"),
        (lambda clock: checked_clock(clock, ONE), "s", "must be a gradflow clock"),
    ],
)
def test_settings_of_another_type_are_named(check, value, match):
    """Those that the test suite's type checker would not let through."""
    with pytest.raises(ValueError, match=match):
        check(value)


@pytest.mark.parametrize(
    "solver, dtype, scale",
    [
        (gf.solvers.Rodas5P(), np.float32, 2.0**17),
        (gf.solvers.Rodas5P(), float, 2.0**-60),
        (gf.solvers.DualRodas5P(), np.float32, 2.0**-17),
    ],
)
def test_the_scale_of_the_data_changes_nothing(solver, dtype, scale):
    """Regression: quadratures are of another scale than the parameters; that they were
    eliminated together took ten times the steps, or ended in `chattering`."""
    dual = isinstance(solver, gf.solvers.DualRodas5P)
    x, y = separable(n=6 if dual else 30, d=10)

    def flow(scale):
        model = gf.models.Linear(10)
        model = jax.tree.map(lambda w: w.astype(dtype), model)
        problem = gf.Problem(model, scale * x, y)
        return gf.integrate(problem, to=50.0, saveat=5, solver=solver)

    one, other = flow(1.0), flow(scale)
    assert abs(other.stats["steps"] - one.stats["steps"]) <= 2
    assert other.stats["rejected_steps"] == one.stats["rejected_steps"]
    size = np.max(np.abs(one.theta))
    np.testing.assert_allclose(
        scale * other.theta, one.theta, atol=1e2 * np.finfo(dtype).eps * size
    )
