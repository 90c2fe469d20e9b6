import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf
from gradflow._step_sizes import StepSizes


def tries(error, start=1.0, most=60):
    """Lengths tried until one is accepted, for an error that depends on the length."""
    sizes = StepSizes(gf.solvers.RKC2())
    t, t_next = jnp.zeros(()), jnp.asarray(start)
    state, lengths = sizes.start(t_next), []
    for _ in range(most):
        lengths.append(float(t_next - t))
        keep, t, t_next, state = sizes.after(
            t, t_next, jnp.asarray(error(lengths[-1])), state
        )
        if keep:
            return lengths, float(t_next - t), state
    pytest.fail(f"No step accepted: {lengths}.")


@pytest.mark.parametrize("order", [0.3, 0.5, 1.0])
def test_an_error_of_low_order_is_found_out_by_two_tries(order):
    fits = 1e-2
    lengths, _, _ = tries(lambda h: (h / fits) ** order)
    # Two tries as for the method's order, then at most one length in ten at a time.
    assert len(lengths) <= 5
    assert lengths[-1] > 0.01 * fits
    single = diffrax.PIDController(0.0, 1.0, pcoeff=0.3, icoeff=0.3)
    assert len(lengths) <= plain(single, lambda h: (h / fits) ** order) / 2


def plain(pid, error):
    """How many tries Diffrax's controller alone takes."""
    zero, h, count = jnp.zeros(()), 1.0, 0
    _, state = pid.init(None, zero, h, zero, h, None, None, 2)
    while True:
        count += 1
        keep, _, end, _, state, _ = pid.adapt_step_size(
            zero, jnp.asarray(h), zero, zero, None, jnp.asarray(error(h)), 2, state
        )
        if keep:
            return count
        h = float(end)


def test_an_error_of_the_methods_order_takes_no_other_steps():
    lengths, _, _ = tries(lambda h: (3 * h) ** 2)
    assert len(lengths) <= 3
    assert lengths[-1] > 0.2 / 3


def test_a_step_is_never_cut_to_less_than_a_tenth():
    lengths, _, _ = tries(lambda h: 50.0 if h > 1e-4 else 0.5)
    cuts = np.array(lengths[1:]) / lengths[:-1]
    assert np.all(cuts >= 0.1 * (1 - 1e-12))
    assert np.all(cuts < 1)


def test_steps_that_are_not_finite_say_nothing_of_an_order():
    lengths, _, (_, failure) = tries(lambda h: np.inf if h > 0.1 else 0.5)
    np.testing.assert_allclose(np.array(lengths[1:]) / lengths[:-1], 0.2)
    assert float(failure.length) == 0


def test_a_failure_is_forgotten_when_a_step_is_accepted():
    sizes = StepSizes(gf.solvers.RKC2())
    _, following, state = tries(lambda h: (h / 0.1) ** 0.5)
    t = jnp.zeros(())
    error = jnp.asarray(1.5)
    keep, _, end, (_, failure) = sizes.after(t, jnp.asarray(following), error, state)
    # As for the method's order: a first try that failed says nothing of another one.
    assert not keep
    assert float(end) > 0.5 * following
    assert float(failure.length) == following


def test_dtypes_are_kept():
    sizes = StepSizes(gf.solvers.RKC2())
    for dtype in (jnp.float32, jnp.float64):
        length = jnp.asarray(1.0, dtype)
        state = sizes.start(length)
        after = jax.jit(sizes.after)
        outcome = after(jnp.zeros((), dtype), length, jnp.asarray(2.0, dtype), state)
        again = jax.tree.map(jnp.result_type, outcome[3])
        assert again == jax.tree.map(jnp.result_type, state)
        assert outcome[2].dtype == dtype


def test_a_solver_without_an_order_is_named(monkeypatch):
    monkeypatch.setattr(diffrax.Tsit5, "error_order", lambda self, terms: None)
    problem = gf.Problem(gf.models.Linear(1), np.ones((2, 1)), np.array([1, -1]))
    with pytest.raises(ValueError, match=r"`solver=Tsit5\(\)` does not state"):
        gf.integrate(problem, 5.0, solver=diffrax.Tsit5())
