"""The Fisher information against closed forms and against one autograd call per sample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import linalg
from torch import Tensor, nn

from cl_runner.config.schema import SGD, Training
from cl_runner.core import Stream, Task, TrainState
from cl_runner.functional import importance as formulas
from cl_runner.functional.importance import (
    LABEL_RULES,
    batchnorm_factor,
    fisher_overlap,
    has_rule,
    merge_quadratics,
    score_cotangents,
)
from cl_runner.functional.losses import mask_logits, quadratic
from cl_runner.nn.networks import CNN, MLP, ResNet
from cl_runner.strategies.parts import importance as passes
from cl_runner.strategies.parts.importance import fisher_diagonal, output_sensitivity
from cl_runner.training import env as training_env
from cl_runner.training.env import Env

N, K, IMAGE, PIXELS = 23, 4, (1, 4, 4), 16


def environment(
    make_net: Callable[[], nn.Module],
    *,
    x: Tensor | None = None,
    y: Tensor | None = None,
    active_classes: str = "all",
    seed: int = 0,
) -> tuple[Env, TrainState]:
    """Two class-incremental tasks, classes 0-1 and 2-3, in double precision.

    Task 0 holds all rows but the last three, whatever their labels: `true` may then meet any class.
    """
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, *IMAGE, generator=generator, dtype=torch.float64) if x is None else x
    y = torch.randint(K // 2, (len(x),), generator=generator) if y is None else y
    rows = torch.arange(len(x))
    parts = (rows[:-3], rows[-3:])
    tasks = tuple(
        Task(t, (2 * t, 2 * t + 1), ("a", "b"), part, rows[:0], rows[:0])
        for t, part in enumerate(parts)
    )
    stream = Stream(
        x=x,
        y=y,
        x_test=x[:0],
        y_test=y[:0],
        tasks=tasks,
        tables={"label": torch.arange(K).expand(2, K).contiguous()},
        num_classes=K,
        scenario="class",
        scale=torch.ones(1, 1, 1, dtype=torch.float64),
        shift=None,
    )
    env = Env(
        stream=stream,
        make_net=lambda _: make_net().double(),
        optimizer=SGD(name="sgd", lr=0.1),
        training=Training(active_classes=active_classes),
        seed=seed,
    )
    return env, TrainState(env.flat.theta, env.flat.buffers, {}, {}, torch.tensor(0))


def uniforms(env: Env, s: TrainState, task: Task) -> Tensor:
    """The uniforms that a pass over the task gives to its samples."""
    parts, _ = env.fold(lambda carry, b: [*carry, b.noise["label"]], [], s, task)
    return torch.cat(parts)


def weights_of_labels(p: list[float], y: int, rule: str, uniform: float) -> list[float]:
    """The distribution over labels that a rule takes the expectation over, in plain Python."""
    if rule == "exact":
        return p
    if rule == "true":
        label = y
    elif rule == "predicted":
        label = max(range(K), key=lambda c: p[c])
    else:
        label = int(np.searchsorted(np.cumsum(p), uniform, side="right"))
    return [float(c == label) for c in range(K)]


def brute_force(env: Env, s: TrainState, task: Task, rule: str) -> Tensor:
    """F by its definition: for each sample and each label one gradient of log p, squared."""
    net, total = env.flat.module.eval(), torch.zeros_like(s.theta).detach()
    uniform = uniforms(env, s, task)
    net.eval()
    active = env.active(torch.tensor([task.index]), s.t)
    for n, row in enumerate(task.train.tolist()):
        logits = net(env.stream.x[row : row + 1])
        log_p = F.log_softmax(mask_logits(logits, active), 1)[0]
        label_weights = weights_of_labels(
            log_p.exp().tolist(), int(env.stream.y[row]), rule, uniform[n].item()
        )
        for c, weight in enumerate(label_weights):
            if weight:
                parts = torch.autograd.grad(
                    log_p[c], env.flat.parameters, retain_graph=True, materialize_grads=True
                )
                total += weight * torch.cat([g.flatten() for g in parts]).square()
    net.train()
    return total / len(task.train)


def brute_force_sensitivity(env: Env, s: TrainState, task: Task) -> Tensor:
    """Omega by its definition: for each sample the gradient of |f|^2, absolute values added."""
    net, total = env.flat.module.eval(), torch.zeros_like(s.theta).detach()
    for row in task.train.tolist():
        square = net(env.stream.x[row : row + 1]).square().sum()
        parts = torch.autograd.grad(square, env.flat.parameters, materialize_grads=True)
        total += torch.cat([g.flatten() for g in parts]).abs()
    net.train()
    return total / len(task.train)


class Raw(nn.Module):
    """The MLP 16-6-4 without nn.Linear: its parameters are the module's own."""

    def __init__(self) -> None:
        super().__init__()
        layers = MLP(PIXELS, [6], K, "default", 0.0).layers
        self.w1, self.b1, self.w2, self.b2 = (
            nn.Parameter(p.detach()) for layer in layers for p in (layer.weight, layer.bias)
        )

    def forward(self, x: Tensor, task: Tensor | None = None) -> Tensor:
        return F.linear(F.relu(F.linear(x.flatten(1), self.w1, self.b1)), self.w2, self.b2)


class Variant(nn.Module):
    """An MLP with one of the peculiarities that rule the one-product-per-layer path out, or not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Linear(PIXELS, 6, bias=kind != "no bias")
        self.second = nn.Linear(6, 6)
        self.third = nn.Linear(6, K)
        if kind == "tied":
            self.twin = nn.Linear(6, 6)
            self.twin.weight = self.second.weight
        if kind == "frozen":
            self.first.requires_grad_(False)

    def forward(self, x: Tensor, task: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.first(x.flatten(1)))
        if self.kind == "3-d input":
            h = torch.tanh(self.second(torch.stack([h, -h], 1))).sum(1)
        elif self.kind != "unused":
            h = torch.tanh(self.second(h))
        if self.kind == "used twice":
            h = torch.tanh(self.second(h))
        if self.kind == "tied":
            h = torch.tanh(self.twin(h))
        logits: Tensor = self.third(h)
        return logits


def small_resnet() -> nn.Module:
    """With running statistics and affine maps of BatchNorm that are not the initial ones."""
    net = ResNet(1, (1, 1), 2, K, "projection")
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for p in (m.weight, m.bias, m.running_mean, m.running_var):
                nn.init.uniform_(p, 0.5, 2.0)
    return net


class Images(nn.Module):
    """Convolutions of 1x8x8 images, with one peculiarity each."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        options = {
            "grouped": {"groups": 2},
            "circular": {"padding": 1, "padding_mode": "circular"},
            "same": {"padding": "same"},
            "dilated": {"dilation": 2, "padding": 2},
            "strided": {"stride": (2, 1), "padding": (0, 2)},
            "no bias": {"bias": False},
        }.get(kind, {})
        self.stem = nn.Conv2d(1, 4, (3, 2), stride=2, padding=(1, 0))  # to 4x4
        self.conv = nn.Conv2d(4, 4, 3, **({"padding": 1} | options))
        self.norm = nn.LayerNorm(4) if kind == "layer norm" else nn.BatchNorm2d(4)
        self.idle = nn.Conv2d(4, 2, 1) if kind == "idle" else None
        self.relu = nn.ReLU(inplace=kind == "in place")
        self.last = nn.Conv2d(4, 3, 1)
        self.output = nn.Linear(3, K)
        if kind == "shared":
            self.last = nn.Conv2d(4, 4, 3, padding=1)
            self.last.weight = self.conv.weight
            self.output = nn.Linear(4, K)
        if kind == "frozen":
            self.conv.weight.requires_grad_(False)
            self.norm.bias.requires_grad_(False)

    def forward(self, x: Tensor, task: Tensor | None = None) -> Tensor:
        x = self.relu(self.conv(self.relu(self.stem(x))))
        if self.kind == "used twice":
            x = self.conv(x)
        x = (
            self.norm(x.movedim(1, -1)).movedim(-1, 1)
            if self.kind == "layer norm"
            else self.norm(x)
        )
        if self.idle is not None:
            self.idle(x)
        logits: Tensor = self.output(self.last(self.relu(x)).mean((2, 3)))
        return logits


def trained(make_net: Callable[[], nn.Module], side: int, rows: int) -> tuple[Env, TrainState]:
    """After steps that move BatchNorm's statistics and affine maps from the initial ones."""
    x = 2 * torch.randn(rows, 1, side, side, generator=torch.Generator().manual_seed(4)).double()
    env, s = environment(make_net, x=x + 1)
    optimizer = torch.optim.SGD(env.flat.parameters, lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(env.flat.module(x), env.stream.y).backward()
        optimizer.step()
    return env, s


def linear() -> nn.Module:
    return MLP(PIXELS, [], K, "default", 0.0)


def mlp(dropout: float = 0.0) -> nn.Module:
    return MLP(PIXELS, [6], K, "default", dropout)


def cnn() -> nn.Module:
    return CNN(IMAGE, [3], 5, K)


@pytest.fixture
def vmaps(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with each call of vmap: tells which of the two paths was taken."""
    calls, vmap = [], torch.func.vmap

    def counted(*args, **kwargs):
        calls.append(None)
        return vmap(*args, **kwargs)

    monkeypatch.setattr(torch.func, "vmap", counted)
    return calls


@pytest.mark.parametrize("rule", LABEL_RULES)
def test_logistic_regression_in_closed_form(rule: str) -> None:
    # d log p(y | x) / d W_kd = (1[y = k] - p_k) x_d, hence F = mean_x E_y (1[y = k] - p_k)^2 x_d^2.
    env, s = environment(linear)
    task = env.stream[0]
    x, y = env.stream.x[task.train].flatten(1).numpy(), env.stream.y[task.train].numpy()
    weight, bias = (p.detach().numpy() for p in env.flat.module.layers[0].parameters())
    score = np.exp(x @ weight.T + bias)
    p = score / score.sum(1, keepdims=True)
    if rule == "exact":
        square = p * (1 - p)  # the variance of a Bernoulli variable
    else:
        label = {
            "true": y,
            "predicted": p.argmax(1),
            "sampled": (p.cumsum(1) > uniforms(env, s, task).numpy()[:, None]).argmax(1),
        }[rule]
        square = (np.eye(K)[label] - p) ** 2
    expected = np.concatenate([(square.T @ x**2).ravel(), square.sum(0)]) / len(x)
    fisher = fisher_diagonal(s, task, env, labels=rule, samples=None)
    np.testing.assert_allclose(fisher.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("rule", LABEL_RULES)
@pytest.mark.parametrize("active_classes", ["all", "current"])
@pytest.mark.parametrize(
    ("make_net", "fast"),
    [(mlp, True), (Raw, False), (cnn, True), (small_resnet, True)],
    ids=["mlp", "raw", "cnn", "resnet"],
)
def test_any_network_against_one_gradient_per_sample(
    vmaps: list[None], make_net: Callable[[], nn.Module], fast: bool, active_classes: str, rule: str
) -> None:
    env, s = environment(make_net, active_classes=active_classes)
    task = env.stream[0]
    fisher = fisher_diagonal(s, task, env, labels=rule, samples=None)
    assert (not vmaps) == fast
    torch.testing.assert_close(fisher, brute_force(env, s, task, rule), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "fast"),
    [
        ("plain", True),
        ("no bias", True),
        ("frozen", True),
        ("used twice", False),
        ("3-d input", False),
        ("unused", False),
        ("tied", False),
    ],
)
def test_the_fast_path_is_taken_only_where_it_holds(
    vmaps: list[None], kind: str, fast: bool
) -> None:
    env, s = environment(lambda: Variant(kind))
    task = env.stream[0]
    fisher = fisher_diagonal(s, task, env, labels="exact", samples=None)
    torch.testing.assert_close(fisher, brute_force(env, s, task, "exact"), rtol=1e-9, atol=1e-14)
    assert (not vmaps) == fast


@pytest.mark.parametrize(
    ("kind", "fast"),
    [
        ("plain", True),
        ("in place", True),
        ("strided", True),
        ("dilated", True),
        ("no bias", True),
        ("frozen", True),
        ("idle", True),
        ("used twice", False),
        ("shared", False),
        ("grouped", False),
        ("circular", False),
        ("same", False),
        ("layer norm", False),
    ],
)
def test_convolutions_of_any_kind_against_one_gradient_per_sample(
    vmaps: list[None], kind: str, fast: bool
) -> None:
    env, s = trained(lambda: Images(kind), 8, 9)
    task = env.stream[0]
    fisher = fisher_diagonal(s, task, env, labels="exact", samples=None)
    torch.testing.assert_close(fisher, brute_force(env, s, task, "exact"), rtol=1e-9, atol=1e-14)
    omega = output_sensitivity(s, task, env, samples=None)
    torch.testing.assert_close(omega, brute_force_sensitivity(env, s, task), rtol=1e-9, atol=1e-14)
    assert (not vmaps) == fast
    assert bool((fisher > 0).any())


class OwnLinear(nn.Linear):
    """A subclass may compute something else."""


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(2, 2), True),
        (OwnLinear(2, 2), False),
        (nn.LayerNorm(2), False),
        (nn.Conv2d(2, 2, 3, padding=1), True),
        (nn.Conv2d(2, 2, 3, groups=2), False),
        (nn.Conv2d(2, 2, 3, padding="same"), False),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), False),
        (nn.BatchNorm2d(2).eval(), True),
        (nn.BatchNorm2d(2), False),
        (nn.BatchNorm2d(2, track_running_stats=False).eval(), False),
        (nn.BatchNorm1d(2).eval(), True),
        (nn.BatchNorm1d(2), False),
    ],
    ids=str,
)
def test_the_layers_of_which_the_rules_hold(layer: nn.Module, expected: bool) -> None:
    assert has_rule(layer) is expected


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, ()), (nn.BatchNorm2d, (2, 2))])
def test_the_factor_of_batchnorm_is_its_output_without_the_affine_map(
    kind: type[nn.BatchNorm1d | nn.BatchNorm2d], shape: tuple[int, ...]
) -> None:
    layer = kind(2, eps=0.5, affine=False).eval()
    layer.running_mean, layer.running_var = torch.tensor([1.0, 2]), torch.tensor([3.0, 4])
    a = torch.randn(3, 2, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(batchnorm_factor(layer, a), layer(a).reshape(3, 2, -1))


class Scaled(nn.Module):
    """Logits that are twice as large in task 1."""

    def __init__(self, kind: type[nn.Linear]) -> None:
        super().__init__()
        self.layer = kind(PIXELS, K)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) * (1 + task[:, None])


@pytest.mark.parametrize("kind", [nn.Linear, OwnLinear])
def test_the_network_sees_each_samples_task(kind: type[nn.Linear]) -> None:
    env, s = environment(lambda: Scaled(kind))
    first = env.stream[0]
    second = Task(1, first.classes, first.names, first.train, first.test, first.test)
    omegas = [output_sensitivity(s, task, env, samples=None) for task in (first, second)]
    torch.testing.assert_close(omegas[1], 4 * omegas[0])
    assert bool((omegas[0] > 0).all())


class Positions(nn.Module):
    """A kernel that fits into an image of side 4 at some positions, one beside the other."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.kernel = nn.Conv2d(1, 3, (4, 5 - number))
        self.output = nn.Linear(3 * number, K)

    def forward(self, x: Tensor, task: Tensor | None = None) -> Tensor:
        return self.output(self.kernel(x).tanh().flatten(1))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_few_positions_against_one_gradient_per_sample(number: int) -> None:
    env, s = environment(lambda: Positions(number))
    task = env.stream[0]
    fisher = fisher_diagonal(s, task, env, labels="exact", samples=None)
    torch.testing.assert_close(fisher, brute_force(env, s, task, "exact"), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("shortcut", ["projection", "identity"])
@pytest.mark.parametrize(("side", "rows"), [(8, 9), (32, 6)])
def test_trained_resnets_against_one_gradient_per_sample(
    vmaps: list[None], side: int, rows: int, shortcut: str
) -> None:
    # At 8x8 the last stage has one position, where the cotangents share one matrix product.
    env, s = trained(lambda: ResNet(1, (1, 1, 1, 1), 2, K, shortcut), side, rows)
    buffers = {name: v.clone() for name, v in env.flat.buffers.items()}
    task = env.stream[0]
    fisher = fisher_diagonal(s, task, env, labels="exact", samples=None)
    omega = output_sensitivity(s, task, env, samples=None)
    assert not vmaps
    assert all(torch.equal(v, buffers[name]) for name, v in env.flat.buffers.items())
    torch.testing.assert_close(fisher, brute_force(env, s, task, "exact"), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(omega, brute_force_sensitivity(env, s, task), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("rule", LABEL_RULES)
@pytest.mark.parametrize(
    ("kind", "numbers"),  # per sample: factors of five layers, or gradients of all parameters
    [("plain", 6 * 16 + 36 * 16 + 4 * 16 + 4 * 16 + 3), ("grouped", 28 + 76 + 8 + 15 + 16)],
)
def test_the_memory_bounds_change_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: str, numbers: int, rule: str
) -> None:
    env, s = trained(lambda: Images(kind), 8, 14)
    split, parts = passes.split, []

    def counted(batch, size):
        for part in split(batch, size):
            parts.append(len(part.x))
            yield part

    whole = fisher_diagonal(s, env.stream[0], env, labels=rule, samples=None)
    monkeypatch.setattr(passes, "split", counted)
    for samples, largest in ((0, 1), (3, 3)):
        monkeypatch.setattr(passes, "FACTOR_BYTES", samples * numbers * 8)
        monkeypatch.setattr(formulas, "BLOCK_BYTES", samples * 400)
        parts.clear()
        fisher = fisher_diagonal(s, env.stream[0], env, labels=rule, samples=None)
        torch.testing.assert_close(fisher, whole, rtol=1e-12, atol=1e-15)
        assert max(parts) == largest


def test_the_classes_share_one_matrix_product_per_linear_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, add_product = [], formulas.add_product
    monkeypatch.setattr(
        formulas, "add_product", lambda *args: calls.append(None) or add_product(*args)
    )
    env, s = environment(mlp)
    fisher_diagonal(s, env.stream[0], env, labels="exact", samples=None)
    assert len(calls) == 2


def test_exact_labels_cost_a_backward_pass_per_active_class_only() -> None:
    active = torch.tensor([[True, False, True, False], [False, False, True, False]])
    labels, uniform = torch.zeros(2).long(), torch.zeros(2)
    logits = torch.randn(2, K, generator=torch.Generator().manual_seed(5))
    assert len(score_cotangents(logits, labels, active, "exact", uniform)) == 2
    assert len(score_cotangents(logits, labels, None, "exact", uniform)) == K


@pytest.mark.parametrize("rule", LABEL_RULES)
def test_both_paths_agree(rule: str) -> None:
    env, s = environment(mlp)
    raw, s_raw = environment(Raw)
    raw.flat.commit(s.theta.detach())
    fast, general = (
        fisher_diagonal(state, e.stream[0], e, labels=rule, samples=None)
        for e, state in ((env, s), (raw, s_raw))
    )
    torch.testing.assert_close(fast, general, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("make_net", [mlp, cnn])
def test_it_is_not_the_square_of_the_mean_gradient(make_net: Callable[[], nn.Module]) -> None:
    env, s = environment(make_net)
    task = env.stream[0]
    fisher = fisher_diagonal(s, task, env, labels="true", samples=None)
    logits = env.flat.module(env.stream.x[task.train])
    mean = torch.autograd.grad(
        F.cross_entropy(logits, env.stream.y[task.train]), env.flat.parameters
    )
    square = torch.cat([g.flatten() for g in mean]).square()
    # mean(g^2) >= mean(g)^2, with equality only where all samples have the same gradient.
    assert bool((fisher >= square - 1e-15).all())
    assert fisher.sum() > 2 * square.sum()


def test_opposite_gradients_do_not_cancel() -> None:
    x = torch.ones(5, *IMAGE, dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 0, 0])  # task 0 has the first two
    env, s = environment(linear, x=x, y=y, active_classes="current")
    nn.init.zeros_(env.flat.module.layers[0].weight)
    nn.init.zeros_(env.flat.module.layers[0].bias)
    fisher = fisher_diagonal(s, env.stream[0], env, labels="true", samples=None)
    weight = env.flat.views(fisher)["layers.0.weight"]
    torch.testing.assert_close(weight[:2], torch.full_like(weight[:2], 0.25))


@pytest.mark.parametrize("rule", LABEL_RULES)
@pytest.mark.parametrize("make_net", [mlp, cnn])
def test_the_chunk_size_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, make_net: Callable[[], nn.Module], rule: str
) -> None:
    env, s = environment(make_net)
    whole = fisher_diagonal(s, env.stream[0], env, labels=rule, samples=None)
    for chunk in (1, 3, len(env.stream[0].train)):
        monkeypatch.setattr(training_env, "FOLD_CHUNK", chunk)
        fisher = fisher_diagonal(s, env.stream[0], env, labels=rule, samples=None)
        torch.testing.assert_close(fisher, whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("rule", LABEL_RULES)
@pytest.mark.parametrize("make_net", [mlp, cnn])
def test_inactive_classes_contribute_nothing(make_net: Callable[[], nn.Module], rule: str) -> None:
    env, s = environment(make_net, active_classes="current")
    name = env.flat.names[-2]  # the last layer's weight, a row per class

    def last_layer() -> Tensor:
        fisher = fisher_diagonal(s, env.stream[0], env, labels=rule, samples=None)
        return env.flat.views(fisher)[name]

    before = last_layer()
    assert bool((before[2:] == 0).all())
    assert bool((before[:2] > 0).any())
    with torch.no_grad():
        env.flat.views(s.theta)[name][2:] += 10  # the other task's outputs
    torch.testing.assert_close(last_layer(), before, rtol=1e-12, atol=0)


def test_sampled_labels_follow_the_distribution() -> None:
    # Evenly spaced uniforms instead of random ones: the frequencies are then exact to 1/M.
    M, logits = 4000, torch.tensor([[0.3, -1.0, 2.0, 0.1]])
    active = torch.tensor([[True, False, True, True]])
    p = torch.softmax(mask_logits(logits, active), 1)
    uniform = (torch.arange(M) + 0.5) / M
    (g,) = score_cotangents(
        logits.expand(M, -1), torch.zeros(M).long(), active.expand(M, -1), "sampled", uniform
    )
    frequency = (g + p).mean(0)  # of the one-hot labels
    torch.testing.assert_close(frequency, p[0], rtol=0, atol=1.5 / M)
    assert bool((g[:, 1] == 0).all())


def test_sampled_converges_to_exact() -> None:
    base = torch.randn(3, *IMAGE, generator=torch.Generator().manual_seed(2)).double()
    x = torch.cat([base.repeat_interleave(3000, 0), base])  # the last three are task 1's
    env, s = environment(mlp, x=x)
    exact = fisher_diagonal(s, env.stream[0], env, labels="exact", samples=None)
    sampled = fisher_diagonal(s, env.stream[0], env, labels="sampled", samples=None)
    assert (sampled - exact).norm() < 0.03 * exact.norm()
    few = fisher_diagonal(s, env.stream[0], env, labels="sampled", samples=20)
    assert (sampled - exact).norm() < 0.5 * (few - exact).norm()


@pytest.mark.parametrize("position", [0, 1, 3])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_sampled_never_takes_an_inactive_class(uniform: float, position: int) -> None:
    # 1 - 2^-24 is the largest float32 below 1: a sum of probabilities may lie at or below it.
    M = 2000
    logits = 3 * torch.randn(M, K, generator=torch.Generator().manual_seed(3))
    active = torch.ones(M, K, dtype=torch.bool)
    active[:, position] = False
    draws = torch.full((M,), uniform)
    (g,) = score_cotangents(logits, torch.zeros(M).long(), active, "sampled", draws)
    assert bool((g[:, position] == 0).all())


@pytest.mark.parametrize("rule", ["sampled", "true", "predicted"])
def test_scores_stay_on_their_device(rule: str) -> None:
    logits = torch.zeros(3, K, device="meta")
    (g,) = score_cotangents(logits, logits[:, 0].long(), logits > 0, rule, logits[:, 0])
    assert g.device == logits.device


@pytest.mark.parametrize("make_net", [mlp, cnn])
def test_a_subset_gives_the_mean_over_the_subset(make_net: Callable[[], nn.Module]) -> None:
    env, s = environment(make_net)
    task = env.stream[0]
    none = task.train[:0]

    def chosen(seed: int, samples: int) -> Tensor:
        other, state = environment(make_net, seed=seed)
        rows, count = other.fold(
            lambda carry, b: torch.cat([carry, b.index]), none, state, task, samples=samples
        )
        assert count == len(rows)
        return rows

    rows = chosen(0, 6)
    assert len(set(rows.tolist())) == 6
    assert set(rows.tolist()) <= set(task.train.tolist())
    assert not torch.equal(rows, chosen(1, 6))  # random, by the run's seed
    assert not torch.equal(rows, task.train[:6])
    assert torch.equal(chosen(0, 1000), task.train)  # more than there are: all of them
    fisher = fisher_diagonal(s, task, env, labels="true", samples=6)
    subset = Task(0, task.classes, task.names, rows, none, none)
    torch.testing.assert_close(fisher, brute_force(env, s, subset, "true"), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("samples", [None, 6])
@pytest.mark.parametrize("active_classes", ["all", "current"])
def test_the_sensitivity_of_logistic_regression_in_closed_form(active_classes, samples) -> None:
    """d |f|^2 / d W_kd = 2 f_k x_d, and 0 for a class k that is not active."""
    env, s = environment(linear, active_classes=active_classes)
    task, weight, bias = env.stream[0], *env.flat.module.layers[0].parameters()
    rows, _ = env.fold(lambda c, b: [*c, *b.index.tolist()], [], s, task, samples=samples)
    assert len(rows) == samples or samples is None
    x = env.stream.x[rows].flatten(1)
    f = (x @ weight.T + bias).detach().abs()
    if active_classes == "current":
        f[:, 2:] = 0
    expected = 2 * torch.cat([(f.T @ x.abs()).flatten(), f.sum(0)]) / len(x)
    found = output_sensitivity(s, task, env, samples=samples)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


def test_dropout_is_off_and_nothing_is_changed() -> None:
    env, s = environment(lambda: mlp(dropout=0.5))
    plain, s_plain = environment(mlp)
    before = s.theta.detach().clone()
    fisher = fisher_diagonal(s, env.stream[0], env, labels="exact", samples=None)
    expected = fisher_diagonal(s_plain, plain.stream[0], plain, labels="exact", samples=None)
    assert torch.equal(fisher, expected)
    assert not fisher.requires_grad
    assert torch.equal(s.theta, before)
    assert s.theta.grad is None
    assert env.flat.module.training
    assert not any(m._forward_hooks for m in env.flat.module.modules())


def penalties(tasks: int) -> tuple[Tensor, Tensor]:
    """Anchors and importances [tasks, 50]: large, small and, one in three, zero."""
    generator = torch.Generator().manual_seed(tasks)
    anchors = torch.randn(tasks, 50, generator=generator, dtype=torch.float64)
    size = 10 ** (8 * torch.rand(tasks, 50, generator=generator, dtype=torch.float64) - 6)
    return anchors, size * (torch.rand(tasks, 50, generator=generator) > 1 / 3)


@pytest.mark.parametrize("tasks", [1, 2, 5, 50])
def test_merged_penalty_has_the_gradient_of_the_sum(tasks: int) -> None:
    anchors, importances = penalties(tasks)
    anchor, importance = torch.full_like(anchors[0], 7.0), torch.zeros_like(anchors[0])
    for new_anchor, new_importance in zip(anchors, importances, strict=True):
        anchor = merge_quadratics(anchor, importance, new_anchor, new_importance)
        importance = importance + new_importance
    assert bool(torch.isfinite(anchor).all())
    theta = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta.requires_grad_()
    separate = sum(quadratic(theta, a, f) for a, f in zip(anchors, importances, strict=True))
    (expected,) = torch.autograd.grad(separate, theta)
    (merged,) = torch.autograd.grad(quadratic(theta, anchor, importance), theta)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-12 * importance.max().item())


def test_merging_with_zero_importance_keeps_the_other_anchor() -> None:
    m, new = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    a, b = torch.tensor([0.0, 2.0, 0.0]), torch.tensor([3.0, 0.0, 0.0])
    merged = merge_quadratics(m, a, new, b)
    assert merged[:2].tolist() == [4.0, 2.0]
    assert bool(torch.isfinite(merged).all())


def test_fisher_overlap_is_one_minus_the_squared_frechet_distance() -> None:
    """Against the paper's formula with matrices: 1/2 tr(A + B - 2 (A B)^(1/2)), traces one."""
    generator = torch.Generator().manual_seed(3)
    a, b = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    A, B = (torch.diag(v / v.sum()).numpy() for v in (a, b))
    distance = 0.5 * np.trace(A + B - 2 * linalg.sqrtm(A @ B)).real
    assert fisher_overlap(a, b) == pytest.approx(1 - distance)
    assert fisher_overlap(a, 7 * b) == pytest.approx(fisher_overlap(b, a))  # scale and order
    assert fisher_overlap(a, a) == pytest.approx(1)


def test_fisher_overlap_of_disjoint_weights_is_zero_and_of_none_unknown() -> None:
    one, other = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 0.0, 3.0])
    assert fisher_overlap(one, other) == 0
    assert fisher_overlap(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])) == pytest.approx(
        0.5**0.5
    )
    assert fisher_overlap(one, torch.zeros(3)) is None
