"""Small real and synthetic data, ready to use, as NumPy arrays `(x, y)`."""

from .images import cifar10 as cifar10, mnist as mnist, title as title
from .synthetic import plane as plane, two_moons as two_moons
from .tables import (
    breast_cancer as breast_cancer,
    digits as digits,
    iris as iris,
    wine as wine,
)
