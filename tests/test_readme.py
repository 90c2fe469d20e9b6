"""The README's Python runs, and the commands that documents name exist."""

import functools
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import gradflow as gf

ROOT = Path(__file__).parent.parent


def python_blocks():
    text = (ROOT / "README.md").read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.skipif(not python_blocks(), reason="README.md holds no Python")
def test_the_readme_runs(monkeypatch, tmp_path):
    """As printed, but on fewer examples, and not as far."""
    monkeypatch.chdir(tmp_path)
    integrate = gf.integrate

    def shortened(problem, to, **options):
        return integrate(problem, min(to, 5.0), **options)

    monkeypatch.setattr(gf, "integrate", shortened)
    few = functools.partial(gf.datasets.digits, n=40)
    monkeypatch.setattr(gf.datasets, "digits", few)
    names: dict = {}
    for block in python_blocks():
        exec(compile(block, "README.md", "exec"), names)
    plt.close("all")


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_commands_in_documents_exist(document):
    text = (ROOT / document).read_text()
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make (\w+)`", text)) <= targets
