"""The named networks, at full size, against PyTorch's own; needs torchvision."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision.models")
M = gf.models
KEY = jax.random.key(0)


class VGG(torch.nn.Module):
    """VGG-16's features and one dense layer, as in Lyu and Li, Appendix K."""

    def __init__(self):
        super().__init__()
        self.features = models.vgg16(weights=None).features
        self.classifier = torch.nn.Linear(512, 10)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class LyuLi(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 32, 5, padding=2)
        self.conv2 = torch.nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = torch.nn.Linear(7 * 7 * 64, 1024)
        self.fc2 = torch.nn.Linear(1024, 10)

    def forward(self, x):
        pool = torch.nn.functional.max_pool2d
        h = pool(torch.relu(self.conv1(x)), 2)
        h = pool(torch.relu(self.conv2(h)), 2)
        return self.fc2(torch.relu(self.fc1(h.flatten(1))))


PAIRS = {
    "lyu_li": (lambda: M.LyuLiCNN(bias="all", key=KEY), LyuLi, (28, 28, 1)),
    "lyu_li_first": (lambda: M.LyuLiCNN(bias="first", key=KEY), LyuLi, (28, 28, 1)),
    "vgg": (lambda: M.VGG16(bias="all", key=KEY), VGG, (32, 32, 3)),
    "vgg_first": (lambda: M.VGG16(bias="first", key=KEY), VGG, (32, 32, 3)),
    "resnet": (
        lambda: M.ResNet18(key=KEY),
        lambda: models.resnet18(num_classes=10),
        (64, 64, 3),
    ),
    "densenet": (
        lambda: M.DenseNet121(key=KEY),
        lambda: models.densenet121(num_classes=10),
        (32, 32, 3),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_in_training_form(name):
    make, make_theirs, shape = PAIRS[name]
    rng = np.random.default_rng(0)

    def drawn(leaf):
        # Biases and normalisations start at 0 and 1, which would hide a mistake.
        if not eqx.is_inexact_array(leaf):
            return leaf
        return leaf + 0.1 * rng.standard_normal(leaf.shape) * (leaf.ndim == 1)

    ours = jax.tree.map(drawn, make())
    state = {k: torch.tensor(np.array(v)) for k, v in M.to_state_dict(ours).items()}
    theirs = make_theirs().double().train()
    for key, value in theirs.named_parameters():
        if key not in state:  # Biases that our network does not have.
            assert key.endswith("bias")
            value.data.zero_()
    theirs.load_state_dict(state, strict=False)
    x = rng.random((4, *shape))
    with torch.no_grad():
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    found = jax.vmap(ours, axis_name="batch")(jnp.asarray(x))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * scale)
