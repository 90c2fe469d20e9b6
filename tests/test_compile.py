"""Compiling ahead of time, and waiting that hears an interrupt."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest

from gradflow import _compile
from gradflow._compile import Interrupt, Interrupted, compiled, wait


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
