"""Import and export of weights in PyTorch's layout."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

import gradflow as gf

M = gf.models
KEY = jax.random.key(0)


def torch_conv(weight, bias, x):
    """nn.Conv2d on one image, channels first, valid or "same" for odd filters."""
    return np.stack(
        [
            sum(correlate(c, f, mode="valid") for c, f in zip(x, filters)) + b
            for filters, b in zip(weight, bias)
        ]
    )


def torch_pool(x):
    c, h, w = x.shape
    return x.reshape(c, h // 2, 2, w // 2, 2).max((2, 4))


def test_h_alexnet_computes_what_pytorch_would():
    """The tutorial's forward pass, channels first, in NumPy."""
    rng = np.random.default_rng(0)
    shapes = {"conv1": (6, 3, 5, 5), "conv2": (16, 6, 5, 5)}
    shapes |= {"fc1": (120, 400), "fc2": (84, 120), "fc3": (10, 84)}
    state = {f"{k}.weight": rng.normal(size=s) / 10 for k, s in shapes.items()}
    model = M.from_state_dict(M.HAlexNet(key=KEY), state)
    x = rng.random((3, 32, 32))
    h = x
    for name in ("conv1", "conv2"):
        weight = state[f"{name}.weight"]
        h = torch_pool(np.maximum(torch_conv(weight, np.zeros(len(weight)), h), 0))
    h = h.reshape(-1)
    for name in ("fc1", "fc2", "fc3"):
        h = state[f"{name}.weight"] @ (np.maximum(h, 0) if name != "fc1" else h)
    np.testing.assert_allclose(model(jnp.asarray(x.transpose(1, 2, 0))), h, rtol=1e-10)


MODELS = {
    "alexnet": lambda: M.HAlexNet(key=KEY),
    "lyu_li": lambda: M.LyuLiCNN(bias="all", key=KEY),
    "lyu_li_narrow": lambda: M.LyuLiCNN(widths=(2, 3, 4), key=KEY),
    "vgg": lambda: M.VGG16(widths=(2, 3, 4, 4, 4), key=KEY),
    "resnet": lambda: M.ResNet18(widths=(2, 3), key=KEY),
    "densenet": lambda: M.DenseNet121(blocks=(2, 1), growth=2, key=KEY),
    "mlp": lambda: M.MLP((3, 4, 2), key=KEY),
    "linear": lambda: M.DeepLinear((3, 4, 2), key=KEY),
}
EXPECTED = {
    "lyu_li_narrow": {"fc1.weight": (4, 147), "conv1.bias": (2,)},
    "lyu_li": {"conv2.weight": (64, 32, 3, 3), "fc1.bias": (1024,)},
    "vgg": {"features.0.bias": (2,), "features.28.weight": (4, 4, 3, 3)},
    "resnet": {"layer2.0.downsample.1.weight": (3,), "bn1.bias": (2,)},
    "densenet": {"features.denseblock1.denselayer2.norm1.weight": (6,)},
    "mlp": {"2.weight": (2, 4)},
    "linear": {"1.weight": (2, 4)},
}


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("name", MODELS)
def test_export_and_import_give_the_model_back(name, suffix, tmp_path):
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    model = MODELS[name]()
    state = M.to_state_dict(model)
    for key, shape in EXPECTED.get(name, {}).items():
        assert state[key].shape == shape
    path = tmp_path / f"weights.{suffix}"
    M.save_torch(model, path)
    zero = jax.tree.map(lambda a: 0 * a if eqx.is_array(a) else a, model)
    back = M.load_torch(zero, path)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(model)):
        np.testing.assert_array_equal(a, b)


def test_torchvisions_names_and_ignored_statistics():
    state = M.to_state_dict(MODELS["resnet"]())
    state["bn1.running_mean"] = np.zeros(2)
    state["bn1.num_batches_tracked"] = np.zeros(())
    M.from_state_dict(MODELS["resnet"](), state)


def changed(**arrays):
    return M.to_state_dict(MODELS["mlp"]()) | arrays


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: M.from_state_dict(MODELS["mlp"](), {}), "missing"),
        (lambda: M.from_state_dict(MODELS["mlp"](), changed(b=1)), r"unknown \['b'\]"),
        (
            lambda: M.from_state_dict(
                MODELS["mlp"](), changed(**{"0.weight": np.ones((3, 4))})
            ),
            "`0.weight` has shape",
        ),
        (lambda: M.to_state_dict(M.MexicanHat()), "MexicanHat"),
        (lambda: M.load_torch(MODELS["mlp"](), "weights.pt"), "must end in"),
    ],
)
def test_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()
