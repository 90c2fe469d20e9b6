"""The solvers on the classic stiff test problems, against published values.

Reference values: Mazzia and Magherini, Test Set for Initial Value Problem Solvers,
release 2.4 (HIRES, OREGO, ROBER, VDPOL), to the digits printed there.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gradflow as gf


def van_der_pol(t, y, args):
    return jnp.stack([y[1], ((1 - y[0] ** 2) * y[1] - y[0]) / args])


def robertson(t, y, args):
    slow, fast, dimer = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return jnp.stack([fast - slow, slow - fast - dimer, dimer])


def hires(t, y, args):
    y1, y2, y3, y4, y5, y6, y7, y8 = y
    bound = 280.0 * y6 * y8 - 1.81 * y7
    return jnp.stack(
        [
            -1.71 * y1 + 0.43 * y2 + 8.32 * y3 + 0.0007,
            1.71 * y1 - 8.75 * y2,
            -10.03 * y3 + 0.43 * y4 + 0.035 * y5,
            8.32 * y2 + 1.71 * y3 - 1.12 * y4,
            -1.745 * y5 + 0.43 * y6 + 0.43 * y7,
            -280.0 * y6 * y8 + 0.69 * y4 + 1.71 * y5 - 0.43 * y6 + 0.69 * y7,
            bound,
            -bound,
        ]
    )


def oregonator(t, y, args):
    return jnp.stack(
        [
            77.27 * (y[1] + y[0] * (1 - 8.375e-6 * y[0] - y[1])),
            (y[2] - (1 + y[0]) * y[1]) / 77.27,
            0.161 * (y[0] - y[2]),
        ]
    )


HIRES_END = [
    0.7371312573325668e-3,
    0.1442485726316185e-3,
    0.5888729740967575e-4,
    0.1175651343283149e-2,
    0.2386356198831331e-2,
    0.6238968252742796e-2,
    0.2849998395185769e-2,
    0.2850001604814231e-2,
]
HIRES_START = [1.0, 0, 0, 0, 0, 0, 0, 0.0057]
# field, args, start, t1, end
PROBLEMS = {
    "van_der_pol": (
        van_der_pol,
        1e-6,
        [2.0, 0],
        2.0,
        [1.706167732170483, -0.8928097010247975],
    ),
    "robertson": (
        robertson,
        None,
        [1.0, 0, 0],
        1e11,
        [0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050],
    ),
    "hires": (hires, None, HIRES_START, 321.8122, HIRES_END),
    "oregonator": (
        oregonator,
        None,
        [1.0, 2, 3],
        360.0,
        [1.000814870318523, 1228.178521549917, 132.0554942846706],
    ),
}


def solve(name, solver, rtol, atol, dtype=None):
    field, args, y0, t1, _ = PROBLEMS[name]
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        jnp.asarray(0.0, dtype),
        jnp.asarray(t1, dtype),
        jnp.asarray(1e-6, dtype),
        jnp.asarray(y0, dtype),
        args=args,
        stepsize_controller=diffrax.PIDController(rtol, atol),
        max_steps=20_000,
    )


@pytest.mark.parametrize("name", PROBLEMS)
def test_rodas5p_against_published_values(name):
    solution = solve(name, gf.solvers.Rodas5P(), 1e-7, 1e-12)
    # The global error may exceed the tolerance of one step.
    np.testing.assert_allclose(solution.ys[0], PROBLEMS[name][4], rtol=1e-5)
    assert solution.stats["num_steps"] < 2000


def test_rodas5p_works_less_than_scipy():
    field, args, y0, t1, end = PROBLEMS["hires"]
    jacobian = jax.jit(jax.jacfwd(lambda y: field(0.0, y, args)))
    rate = jax.jit(lambda y: field(0.0, y, args))
    ours = solve("hires", gf.solvers.Rodas5P(), 1e-4, 1e-9)
    radau, lsoda = (
        solve_ivp(
            lambda t, y: np.asarray(rate(y)),
            (0, t1),
            np.asarray(y0, float),
            method,
            rtol=1e-4,
            atol=1e-9,
            jac=lambda t, y: np.asarray(jacobian(y)),
        )
        for method in ("Radau", "LSODA")
    )
    assert ours.stats["num_steps"] < radau.nlu
    assert ours.stats["num_steps"] < len(lsoda.t)
    np.testing.assert_allclose(ours.ys[0], end, rtol=1e-4)
    np.testing.assert_allclose(ours.ys[0], radau.y[:, -1], rtol=1e-4)
    np.testing.assert_allclose(ours.ys[0], lsoda.y[:, -1], rtol=2e-2)


def test_rodas5p_in_float32():
    solution = solve("hires", gf.solvers.Rodas5P(), 1e-4, 1e-7, jnp.float32)
    assert solution.ys.dtype == jnp.float32
    np.testing.assert_allclose(solution.ys[0], HIRES_END, rtol=2e-3)


# An explicit method's work grows with the square root of t times the spectral radius,
# so that Robertson's problem ends early here.
@pytest.fixture(scope="module")
def robertson_40():
    """At t = 40, by SciPy; the documentation of LSODE has 0.7158, 9.185e-6, 0.2842."""
    end = solve_ivp(
        lambda t, y: np.asarray(robertson(t, y, None)),
        (0, 40.0),
        [1.0, 0, 0],
        "Radau",
        rtol=1e-10,
        atol=1e-14,
    )
    np.testing.assert_allclose(end.y[:, -1], [0.7158, 9.185e-6, 0.2842], rtol=2e-4)
    return end.y[:, -1]


STABILISED = pytest.mark.parametrize(
    "solver", [gf.solvers.RKC2(), gf.solvers.DeflatedRKC2()], ids=["rkc2", "deflated"]
)


@STABILISED
def test_stabilised_methods_on_robertson(solver, robertson_40):
    field, args, y0, _, _ = PROBLEMS["robertson"]
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        0.0,
        40.0,
        1e-6,
        jnp.asarray(y0),
        args=args,
        stepsize_controller=diffrax.PIDController(1e-4, 1e-9),
    )
    np.testing.assert_allclose(solution.ys[0], robertson_40, rtol=1e-3)
    assert solution.stats["num_steps"] < 200


@STABILISED
@pytest.mark.parametrize(
    ("name", "atol", "tolerance"),
    [
        ("hires", 1e-8, 2e-3),
        ("oregonator", 1e-6, 5e-2),  # Near an instability that multiplies errors.
        ("van_der_pol", 1e-7, 1e-3),
    ],
)
def test_stabilised_methods_against_published_values(name, atol, tolerance, solver):
    solution = solve(name, solver, 1e-4, atol)
    np.testing.assert_allclose(solution.ys[0], PROBLEMS[name][4], rtol=tolerance)
    assert solution.stats["num_steps"] < 3000


def test_one_deflated_direction_is_enough_to_see_that_it_is_none():
    solution = solve("oregonator", gf.solvers.DeflatedRKC2(rank=1), 1e-4, 1e-6)
    np.testing.assert_allclose(solution.ys[0], PROBLEMS["oregonator"][4], rtol=5e-2)


def test_rkc2_in_float32():
    solution = solve("hires", gf.solvers.RKC2(), 1e-4, 1e-7, jnp.float32)
    np.testing.assert_allclose(solution.ys[0], HIRES_END, rtol=5e-3)
    assert solution.stats["num_steps"] < 400
