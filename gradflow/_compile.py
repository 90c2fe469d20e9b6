"""Compilation in full precision; ahead of time with a cache, timed, interruptible."""

import collections
import functools
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu

_CACHE: collections.OrderedDict[Any, Any] = collections.OrderedDict()
_CACHE_SIZE = 96
# Idle ones are used again. One that an interrupt left behind ends with its work.
_THREADS = futures.ThreadPoolExecutor(8, "gradflow")
_LOOK = 0.05  # Seconds between two looks for an interrupt.
# For what runs once, on a CPU: compiled in a third of the time, it takes up to twice as
# long.
_ONCE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


def jitted(function: Callable) -> Any:
    """`eqx.filter_jit` in the full precision of dtypes."""
    return eqx.filter_jit(_precise(function))


def _precise(function: Callable) -> Callable:
    """Traced in full precision: accelerators would round float32 factors of matrix
    products and convolutions to ten or eight bits."""

    @functools.wraps(function)
    def precise(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return precise


class Interrupt:
    """Set by Ctrl-C; looked at while waiting for compiled work."""

    def __init__(self):
        self.requested = False

    def request(self, *args):
        del args
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class Interrupted(Exception):
    """Waiting was given up because an interrupt was requested."""


def compiled(
    function: Callable, *args, interrupt: Interrupt, once: bool = False
) -> tuple[Callable, float]:
    """`function` compiled for arguments of this structure, and the seconds it took.

    The same function on arguments of the same shapes, dtypes and static parts is
    compiled once per process; a repeat takes 0.0 seconds. `once`: whether it is to run
    once, so that compiling matters more than running.
    """
    key, leaves, treedef = _key(function, args)

    def made():
        # No leaf is `None`, and no array is to be kept.
        constants = [None if eqx.is_array(leaf) else leaf for leaf in leaves]

        def flat(arrays):
            given = iter(arrays)
            filled = [next(given) if leaf is None else leaf for leaf in constants]
            return function(*jtu.tree_unflatten(treedef, filled))

        lowered = jax.jit(_precise(flat)).lower(_arrays(leaves))
        quick = once and jax.default_backend() == "cpu"
        return _awaited(
            (lambda: _quickly(lowered)) if quick else lowered.compile, interrupt, 0.0
        )

    began, known = time.perf_counter(), key in _CACHE
    executable = _cached(key, made)
    seconds = 0.0 if known else time.perf_counter() - began

    def call(*args):
        return executable(_arrays(jtu.tree_leaves(args)))

    return call, seconds


def _quickly(lowered):
    try:
        return lowered.compile(compiler_options=_ONCE)
    except jax.errors.JaxRuntimeError:  # An option that this version does not know.
        return lowered.compile()


def _key(function: Callable, args: tuple):
    """What decides how a function is compiled; its leaves, and their tree."""
    # Not `eqx.partition`: for a small flow it takes as long as several steps.
    leaves, treedef = jtu.tree_flatten(args)
    kinds = tuple(
        (leaf.shape, leaf.dtype, leaf.weak_type)
        if eqx.is_array(leaf)
        else (type(leaf), leaf)
        for leaf in leaves
    )
    return (function, kinds, treedef), leaves, treedef


def _arrays(leaves: list) -> list[jax.Array]:
    return [leaf for leaf in leaves if eqx.is_array(leaf)]


def _cached(key, make: Callable):
    if key not in _CACHE:
        _CACHE[key] = make()
    _CACHE.move_to_end(key)
    while len(_CACHE) > _CACHE_SIZE:
        _CACHE.popitem(last=False)
    return _CACHE[key]


def wait(tree, interrupt: Interrupt, expected: float, grace: float = 2.0):
    """Blocks until `tree` is computed; gives up `grace` seconds after an interrupt,
    which is heard at the end only of what is expected to take less than a second."""
    if expected < 1:
        return jax.block_until_ready(tree)
    return _awaited(lambda: jax.block_until_ready(tree), interrupt, grace)


def _awaited(work: Callable, interrupt: Interrupt, grace: float):
    # JAX releases the GIL, so that the main thread hears Ctrl-C. Asking it again and
    # again whether it is done took a tenth of the time of a small flow.
    future = _THREADS.submit(work)
    deadline = float("inf")
    while True:
        try:
            return future.result(timeout=_LOOK)
        except TimeoutError:
            if future.done():  # The work's own.
                return future.result()
        now = time.perf_counter()
        if interrupt.requested:
            deadline = min(deadline, now + grace)
        if now >= deadline:
            raise Interrupted
