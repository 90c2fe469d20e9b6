"""Compiling ahead of time, and waiting that hears an interrupt."""

import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf
from gradflow import _compile
from gradflow._compile import Interrupt, Interrupted, compiled, jitted, wait
from gradflow.diagnostics.potentials import _potentials


def _sums(x):
    return jnp.sum(jnp.sin(x) ** 2), jnp.cumsum(x)


@pytest.mark.parametrize("options", [None, {"xla_no_such_option": True}])
def test_what_runs_once_computes_the_same(options, monkeypatch):
    if options is not None:  # As in a version that does not know one of them.
        monkeypatch.setattr(_compile, "_ONCE", options)
    x = jnp.linspace(0, 3, 50 if options else 51)
    call, seconds = compiled(_sums, x, interrupt=Interrupt(), once=True)
    assert seconds > 0
    for ours, expected in zip(call(x), _sums(x), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-14)
    _, seconds = compiled(_sums, x, interrupt=Interrupt(), once=True)
    assert seconds == 0


def test_waiting_ends_soon_after_an_interrupt_and_passes_errors_on():
    interrupt = Interrupt()
    assert wait(jnp.ones(2), interrupt, np.inf).shape == (2,)

    def failing():
        raise TimeoutError("the work's own")

    with pytest.raises(TimeoutError, match="the work's own"):
        _compile._awaited(failing, interrupt, grace=1.0)
    interrupt.request()
    released = threading.Event()
    with pytest.raises(Interrupted):  # Though the work goes on.
        _compile._awaited(released.wait, interrupt, grace=0.1)
    released.set()


class _Stop(Exception):
    pass


@pytest.mark.parametrize(
    "solver", [gf.solvers.DeflatedRKC2(), gf.solvers.Rodas5P(), gf.solvers.RKC2()]
)
def test_products_are_in_full_precision(solver, monkeypatch):
    # Accelerators round float32 factors to ten or eight bits by default, which a CPU
    # does not show; what it compiles says so.
    layers = [
        eqx.nn.Conv2d(1, 2, 3, use_bias=False, key=jax.random.key(0)),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(32, 1, use_bias=False, key=jax.random.key(1)),
    ]
    model = eqx.nn.Sequential(layers)
    x = jax.random.normal(jax.random.key(1), (4, 1, 6, 6))
    problem = gf.Problem(model, x, np.array([-1, 1, -1, 1]))
    gradient = jax.jit(lambda theta: problem.log_risk_and_direction(theta))
    texts = [gradient.lower(problem.theta).as_text()]
    real = jax.stages.Lowered.compile

    def recorded(lowered, *args, **kwargs):
        texts.append(lowered.as_text())
        if len(texts) == 3:
            raise _Stop
        return real(lowered, *args, **kwargs)

    monkeypatch.setattr(jax.stages.Lowered, "compile", recorded)
    with pytest.raises(_Stop):
        gf.integrate(problem, 3.0, solver=solver, progress=False)
    for text in texts:  # Of a gradient, of what starts a flow, and of its steps.
        assert "convolution" in text and "dot_general" in text
        assert "HIGHEST" in text and "DEFAULT" not in text


def test_what_is_compiled_apart_is_in_full_precision_too():
    model = gf.models.MLP((3, 4, 1), key=jax.random.key(0))
    problem = gf.Problem(model, np.eye(3), np.array([-1, 1, 1]))
    for text in (
        jitted(lambda a: a @ a).lower(jnp.eye(2)).as_text(),
        _potentials.lower(problem, problem.theta, 2.0).as_text(),
    ):
        assert "HIGHEST" in text and "DEFAULT" not in text
