"""Data sets: against naive recomputation from raw data, and files made here."""

import gzip
import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
import scipy.optimize
import sklearn.datasets
from PIL import Image

import gradflow as gf
from gradflow.datasets import files

TABLES = [
    (gf.datasets.digits, (1797, 65)),
    (gf.datasets.iris, (150, 5)),
    (gf.datasets.breast_cancer, (569, 31)),
    (gf.datasets.wine, (178, 14)),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty GRADFLOW_DATA, an empty cache beside it, and no network."""
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("GRADFLOW_DATA", str(data))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def unreachable(*args, **kwargs):
        raise OSError("network unreachable")

    monkeypatch.setattr(files.urllib.request, "urlopen", unreachable)
    return data


@pytest.mark.parametrize("dataset, shape", TABLES)
def test_tables_have_the_stated_shapes(dataset, shape):
    x, y = dataset()
    assert x.shape == shape and y.shape == shape[:1]
    assert x.dtype == np.float64
    x, y = dataset("classes", dtype=np.float32)
    assert x.dtype == np.float32 and y.dtype == np.int64


def test_digits_against_a_loop_over_raw_pixels():
    x, y = gf.datasets.digits()
    raw, target = sklearn.datasets.load_digits(return_X_y=True)
    for i in (0, 7, 1796):
        row = np.array([*(raw[i] / 16.0), 1.0])
        np.testing.assert_allclose(x[i], row / np.sqrt(np.sum(row**2)), rtol=1e-14)
        assert y[i] == (1 if target[i] in (1, 3, 5, 7, 9) else -1)
    np.testing.assert_allclose(np.sum(x**2, axis=1), 1)


def test_standardised_columns_and_bias():
    for dataset in (gf.datasets.iris, gf.datasets.breast_cancer, gf.datasets.wine):
        x, _ = dataset()
        np.testing.assert_allclose(x[:, :-1].mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(x[:, :-1].var(axis=0), 1)
        np.testing.assert_array_equal(x[:, -1], 1)


def test_iris_setosa_against_the_rest_by_default():
    x, y = gf.datasets.iris()
    target = sklearn.datasets.load_iris(return_X_y=True)[1]
    np.testing.assert_array_equal(y, np.where(target == 0, 1.0, -1.0))
    np.testing.assert_array_equal(gf.datasets.iris(0)[1], y)
    # Features of an example do not depend on which others are chosen.
    few, _ = gf.datasets.iris(n=9)
    assert all(np.any(np.all(row == x, axis=1)) for row in few)


def separable(x, y):
    """Whether some w has y_i <w, x_i> >= 1 for all i, by linear programming."""
    found = scipy.optimize.linprog(
        np.zeros(x.shape[1]),
        A_ub=-y[:, None] * x,
        b_ub=-np.ones(len(y)),
        bounds=(None, None),
    )
    return found.status == 0


@pytest.mark.parametrize(
    "dataset, task",
    [
        (gf.datasets.iris, "setosa"),
        (gf.datasets.breast_cancer, "malignant"),
        (gf.datasets.wine, "class_0"),
        (gf.datasets.wine, 1),
        (gf.datasets.wine, 2),
    ],
)
def test_linearly_separable_where_the_docstring_says_so(dataset, task):
    assert separable(*dataset(task))


def test_versicolor_is_not_linearly_separable():
    assert not separable(*gf.datasets.iris("versicolor"))


def test_subsets_are_balanced_as_far_as_classes_last():
    _, y = gf.datasets.digits("classes", n=25)
    assert np.bincount(y).tolist() == [3, 3, 3, 3, 3, 2, 2, 2, 2, 2]
    _, y = gf.datasets.breast_cancer(n=500)
    assert (np.sum(y == -1), np.sum(y == 1)) == (212, 288)
    x, y = gf.datasets.digits("classes", classes=(7, "2"), n=10)
    raw, target = sklearn.datasets.load_digits(return_X_y=True)
    first = np.sort(
        [*np.flatnonzero(target == 7)[:5], *np.flatnonzero(target == 2)[:5]]
    )
    np.testing.assert_array_equal(y, np.where(target[first] == 7, 0, 1))
    np.testing.assert_allclose(x[:, :-1] / x[:, -1:], raw[first] / 16, atol=1e-14)


def test_two_moons():
    x, y = gf.datasets.two_moons(50, noise=0.0)
    assert x.shape == (50, 3)
    upper = x[y == -1]
    np.testing.assert_allclose(upper[:, 0] ** 2 + upper[:, 1] ** 2, 1)
    np.testing.assert_array_equal(x[:, 2], 1)
    again, _ = gf.datasets.two_moons(50, noise=0.0)
    np.testing.assert_array_equal(x, again)


@pytest.mark.parametrize("seed", range(4))
def test_plane_is_labelled_by_its_teacher_with_the_margin(seed):
    x, y = gf.datasets.plane(60, width=5, margin=0.4, seed=seed)
    rng = np.random.default_rng(seed)
    w, a = rng.normal(size=(5, 3)), rng.normal(size=5)

    def teacher(p1, p2):
        total = 0.0
        for wj, aj in zip(w, a):
            total += aj * max(0.0, wj[0] * p1 + wj[1] * p2 + wj[2])
        return total

    grid = np.linspace(-1, 1, 101)
    over_square = [teacher(p1, p2) for p1 in grid for p2 in grid]
    output = np.array([teacher(*p[:2]) for p in x]) - np.median(over_square)
    assert np.all(y * output >= 0.4 * np.std(over_square) * (1 - 1e-12))
    assert set(y) == {-1.0, 1.0}
    assert np.all(np.abs(x[:, :2]) <= 1) and np.all(x[:, 2] == 1)


@pytest.mark.parametrize(
    ("seed", "options"),
    [(58, {}), (103, {}), (254, {"margin": 0.0}), (9, {"width": 1})],
)
def test_plane_has_both_labels_where_the_first_teacher_is_flat(seed, options):
    """Regression: a teacher constant on half of the square gave one label, or zeros."""
    _, y = gf.datasets.plane(200, seed=seed, **options)
    assert set(y) == {-1.0, 1.0}
    assert 0.15 < np.mean(y > 0) < 0.85


def images(n, channels=1, side=28):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, channels, side, side), np.uint8), np.arange(n) % 10


def idx(array):
    header = b"\0\0\x08" + bytes([array.ndim])
    return header + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def write_mnist(folder, form, pixels, labels):
    pixels, labels = pixels[:, 0], labels.astype(np.uint8)
    if form == "ours":
        np.savez(folder / "mnist.npz", test_images=pixels, test_labels=labels)
    elif form == "keras":
        np.savez(folder / "mnist.npz", x_test=pixels, y_test=labels)
    else:
        end, pack = (".gz", gzip.compress) if form == "idx.gz" else ("", bytes)
        for prefix in ("train", "t10k"):
            images, numbers = idx(pixels), idx(labels)
            (folder / f"{prefix}-images-idx3-ubyte{end}").write_bytes(pack(images))
            (folder / f"{prefix}-labels-idx1-ubyte{end}").write_bytes(pack(numbers))


@pytest.mark.parametrize("form", ["ours", "keras", "idx", "idx.gz"])
def test_mnist_from_every_form_of_file(folder, form):
    pixels, labels = images(30)
    write_mnist(folder, form, pixels, labels)
    x, y = gf.datasets.mnist(split="test")
    np.testing.assert_array_equal(x, pixels / 255)
    np.testing.assert_array_equal(y, labels)
    x, y = gf.datasets.mnist("parity", split="test", n=10, flat=True, dtype=np.float32)
    assert x.shape == (10, 784) and x.dtype == y.dtype == np.float32
    assert gf.datasets.title("mnist") == "MNIST"


def cifar_batches(pixels, labels):
    def batch(part):
        content = {b"data": pixels[part].reshape(-1, 3072), b"labels": [*labels[part]]}
        return pickle.dumps(content, protocol=2)

    parts = {f"data_batch_{i}": slice(10 * i - 10, 10 * i) for i in range(1, 6)}
    return {name: batch(part) for name, part in parts.items()}


@pytest.mark.parametrize("archive", [False, True])
def test_cifar10_from_python_batches(folder, archive):
    pixels, labels = images(50, 3, 32)
    contents = cifar_batches(pixels, labels.tolist())
    if archive:
        with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
            for name, content in contents.items():
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    else:
        (folder / "cifar-10-batches-py").mkdir()
        for name, content in contents.items():
            (folder / "cifar-10-batches-py" / name).write_bytes(content)
    x, y = gf.datasets.cifar10()
    np.testing.assert_array_equal(x, pixels / 255)
    np.testing.assert_array_equal(y, labels)
    x, y = gf.datasets.cifar10("cat", classes=("cat", "dog"), n=4)
    np.testing.assert_array_equal(x, pixels[[3, 5, 13, 15]] / 255)
    np.testing.assert_array_equal(y, [1, -1, 1, -1])
    assert gf.datasets.title("cifar10") == "CIFAR-10"


def test_cifar10_from_jpeg_files(folder):
    shade = np.linspace(0, 255, 32).astype(np.uint8)
    smooth = np.stack([np.add.outer(shade // 2, shade // 4) for _ in range(3)], axis=-1)
    payloads, decoded = [], []
    for i in range(20):
        file = io.BytesIO()
        Image.fromarray(np.roll(smooth, i, axis=2) + i).save(file, "JPEG", quality=90)
        payloads.append(file.getvalue())
        decoded.append(np.asarray(Image.open(file)))
    prefix = payloads[0][:20]
    assert all(payload.startswith(prefix) for payload in payloads)
    payloads = [payload[20:] for payload in payloads]
    np.savez(
        folder / "cifar10_jpeg.npz",
        jpeg_prefix=np.frombuffer(prefix, np.uint8),
        train_jpeg=np.frombuffer(b"".join(payloads), np.uint8),
        train_offsets=np.cumsum([0, *map(len, payloads)]).astype(np.uint32),
        train_labels=np.arange(20) % 10,
    )
    x, y = gf.datasets.cifar10(n=10)
    assert x.shape == (10, 3, 32, 32)
    np.testing.assert_array_equal(y, np.arange(10))
    for i in range(10):
        for channel in range(3):
            np.testing.assert_array_equal(x[i, channel], decoded[i][..., channel] / 255)
    assert gf.datasets.title("cifar10") == "CIFAR-10 (JPEG)"


def test_pickles_that_name_other_functions_are_not_run(folder):
    (folder / "cifar-10-batches-py").mkdir()
    for i in range(1, 6):
        content = pickle.dumps({b"data": print, b"labels": [0]}, protocol=2)
        (folder / "cifar-10-batches-py" / f"data_batch_{i}").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as CIFAR-10"):
        gf.datasets.cifar10()


def test_download_is_checked_and_kept(folder, monkeypatch, tmp_path):
    pixels, labels = images(30)
    write_mnist(tmp_path, "ours", pixels, labels)
    content = (tmp_path / "mnist.npz").read_bytes()
    asked = []

    def opened(url, timeout):
        del timeout
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(files.urllib.request, "urlopen", opened)
    with pytest.raises(ValueError, match="expected 731c5ac6.*cut short or altered"):
        gf.datasets.mnist(split="test")
    assert not list(files.cache().iterdir())
    form = files.FORMS["mnist"][0]
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(files.FORMS, "mnist", [form._replace(sha256=digest)])
    for _ in range(2):
        x, _ = gf.datasets.mnist(split="test")
        np.testing.assert_array_equal(x, pixels / 255)
    assert asked == [form.url] * 2
    # GRADFLOW_DATA comes before the cache.
    write_mnist(folder, "ours", 255 - pixels, labels)
    np.testing.assert_allclose(gf.datasets.mnist(split="test")[0], 1 - pixels / 255)


def test_missing_files_say_what_to_do(folder, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match="network unreachable.*GRADFLOW_DATA to"
    ):
        gf.datasets.mnist()
    monkeypatch.delenv("GRADFLOW_DATA")
    with pytest.raises(FileNotFoundError, match="not set.*cifar10_jpeg.npz"):
        gf.datasets.cifar10()
    monkeypatch.setenv("GRADFLOW_DATA", str(folder / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere.*not a folder"):
        gf.datasets.mnist()


@pytest.mark.parametrize("name", ["mnist.npz", "train-images-idx3-ubyte.gz"])
def test_damaged_files_are_named(folder, name):
    (folder / name).write_bytes(b"not an image")
    with pytest.raises(ValueError, match=f"{name} cannot be read as MNIST.*damaged"):
        gf.datasets.mnist()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: gf.datasets.iris("rose"), "`task` has 'rose'.*'classes', 'setosa'"),
        (lambda: gf.datasets.iris("parity"), "`task` has 'parity'"),
        (lambda: gf.datasets.digits(11), "`task` has 11.*'parity'"),
        (lambda: gf.datasets.iris(classes=("setosa",)), "at least two classes"),
        (lambda: gf.datasets.iris(classes=(0, 0)), "each once"),
        (lambda: gf.datasets.iris(classes=(0, 7)), "`classes` has 7"),
        (lambda: gf.datasets.iris(classes=(1, 2)), "task='setosa'` is not among"),
        (lambda: gf.datasets.digits(classes=(1, 3)), "the same label"),
        (lambda: gf.datasets.iris(n=2), "`n=2` must be .* from 3 .* to 150"),
        (lambda: gf.datasets.iris(n=151), "`n=151`"),
        (lambda: gf.datasets.iris(dtype=int), "`dtype=.*not floating point"),
        (lambda: gf.datasets.two_moons(1), "`n=1`"),
        (lambda: gf.datasets.two_moons(noise=-1.0), "`noise=-1.0`"),
        (lambda: gf.datasets.plane(margin=2.0), "`margin=2.0`"),
        (lambda: gf.datasets.plane(width=0), "`width=0`"),
        (lambda: gf.datasets.mnist(split="all"), "`split='all'`"),
    ],
)
def test_bad_arguments_name_argument_value_and_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
