"""Recurrent layers: as the textbook has them, as torch has them, and as the exported graph runs them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.model_file import load_graph

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402

from export import export_module  # noqa: E402
from export.nets.cells import ACTIVATIONS, Elman, ElmanLayer, MinGRULayer, scan  # noqa: E402
from export.nets.stack import KINDS, Stack, StackShape  # noqa: E402


def filled(module: nn.Module, **values: list[object]) -> None:
    for name, value in values.items():
        parameter = module.get_parameter(name.replace("__", "."))
        parameter.data = torch.tensor(value, dtype=torch.float32).reshape(parameter.shape)


def test_elman_by_hand() -> None:
    """Two units, one input, one output, two steps, worked on paper.

    W_hh = [[0, 1], [0.5, 0]], W_hx = [1, -1], b_h = [0, 1], W_ho = [2, 1], b_o = -1; x = 1, then 0; h_0 = [0.5, 0].
    h_1 = s([0 + 1, 0.25 - 1 + 1]) = s([1, 0.25])
    o_1 = s(2 s(1) + s(0.25) - 1)
    h_2 = s([h_1[1], 0.5 h_1[0] + 1]), o_2 = s(2 h_2[0] + h_2[1] - 1)
    With s the identity: h_1 = [1, 0.25], o_1 = 1.25, h_2 = [0.25, 1.5], o_2 = 1.
    With s the sigmoid: h_1 = [0.731059, 0.562177], o_1 = s(1.024294) = 0.735808,
    h_2 = s([0.562177, 1.365529]) = [0.636956, 0.796657], o_2 = s(1.070569) = 0.744705.
    """
    steps = torch.tensor([[[1.0]], [[0.0]]])
    start = torch.tensor([[0.5, 0.0]])
    for activation, h_2, outputs in (
        ("identity", [0.25, 1.5], [1.25, 1.0]),
        ("sigmoid", [0.636956, 0.796657], [0.735808, 0.744705]),
    ):
        net = Elman(1, 2, 1, activation)
        filled(net, W_ho=[2, 1], b_o=[-1], hidden__W_hh=[0, 1, 0.5, 0], hidden__W_hx=[1, -1], hidden__b_h=[0, 1])
        o, h = net(steps, start)
        torch.testing.assert_close(o[:, 0, 0], torch.tensor(outputs), atol=2e-6, rtol=0)
        torch.testing.assert_close(h[0], torch.tensor(h_2), atol=2e-6, rtol=0)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_elman_is_torchs_rnn(activation: str) -> None:
    torch.manual_seed(1)
    ours, theirs = ElmanLayer(5, 7, activation), nn.RNN(5, 7, nonlinearity=activation)
    filled(theirs, weight_ih_l0=ours.W_hx.tolist(), weight_hh_l0=ours.W_hh.tolist(), bias_hh_l0=[0.0] * 7)
    nn.init.normal_(ours.b_h)
    theirs.bias_ih_l0.data = ours.b_h.data.clone()
    steps, h = torch.randn(9, 3, 5), torch.randn(3, 7)
    hidden, after = ours(steps, h)
    expected, last = theirs(steps, h[None])
    torch.testing.assert_close(hidden, expected)
    torch.testing.assert_close(after, last[0])


@pytest.mark.parametrize("time", [1, 2, 3, 7, 16, 50])
def test_the_scan_is_the_recurrence(time: int) -> None:
    torch.manual_seed(time)
    keep = torch.rand(time, 2, 3, dtype=torch.float64, requires_grad=True)
    add = torch.randn(time, 2, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def one_by_one(keep: Tensor, add: Tensor, h: Tensor) -> Tensor:
        rows = []
        for a, b in zip(keep, add):
            h = a * h + b
            rows.append(h)
        return torch.stack(rows)

    ours, expected = scan(keep, add, h), one_by_one(keep, add, h)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(ours)
    found = torch.autograd.grad((ours * weights).sum(), (keep, add, h))
    wanted = torch.autograd.grad((expected * weights).sum(), (keep, add, h))
    torch.testing.assert_close(found, wanted)


def test_mingru_is_its_formula() -> None:
    torch.manual_seed(6)
    layer = MinGRULayer(3, 4)
    steps, h = torch.randn(5, 2, 3), torch.randn(2, 4)
    hidden, after = layer(steps, h)
    for t, x in enumerate(steps):
        a = torch.sigmoid(x @ layer.gate.weight.T + layer.gate.bias)
        v = x @ layer.value.weight.T + layer.value.bias
        h = a * h + (1 - a) * v
        torch.testing.assert_close(hidden[t], h)
    torch.testing.assert_close(after, h)


def test_gates_that_close_do_not_overflow_the_scan() -> None:
    keep = torch.full((1000, 1, 1), 1e-30)
    assert torch.isfinite(scan(keep, torch.ones_like(keep), torch.zeros(1, 1))).all()


SHAPES = [
    *(StackShape(3, kind, layers=2, units=6) for kind in ("elman", "lstm", "gru", "mingru")),
    *(StackShape(3, "elman", layers=1, units=5, activation=a) for a in ACTIVATIONS if a != "tanh"),
    *(StackShape(3, kind, layers=3, units=4, connect="dense") for kind in ("elman", "lstm", "mingru")),
    StackShape(3, "gru", layers=3, units=4, residual=True, norm=True, learned=True, dropout=0.5, memory=20),
    StackShape(3, "mingru", layers=2, units=16, residual=True, norm=True, memory=20),
    StackShape(3, "elman", layers=2, units=4, connect="dense", residual=True, norm=True, activation="sigmoid"),
    StackShape(3, "lstm", layers=2, units=4, learned=True, memory=20),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.kind}-{s.activation}-{s.connect}-{s.layers}-{s.norm}")
def test_every_stack_is_served_over_the_time_axis(shape: StackShape, tmp_path: Path) -> None:
    torch.manual_seed(2)
    stack = Stack(shape)
    if stack.initial is not None:
        nn.init.normal_(stack.initial)
    exported = export_module(stack, tmp_path / "stack" / "1", "float32[3]")
    assert exported.contract.time_axis == 0
    assert exported.notes == ()
    assert [s.batch_axis for s in exported.contract.states] == [1] * len(stack.state_names)
    assert (exported.contract.states[0].initial is not None) == shape.learned
    (output,) = exported.contract.outputs
    assert output.shape == (stack.width,)
    assert stack.width == shape.units * (shape.layers if shape.connect == "dense" else 1)
    nodes = {n.op_type for n in load_graph(exported.file).graph.node}
    assert nodes >= {{"elman": "RNN", "lstm": "LSTM", "gru": "GRU", "mingru": "GRU"}[shape.kind]}


@pytest.mark.parametrize("activation", [*ACTIVATIONS])
def test_elman_networks_are_served_over_the_time_axis(activation: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    exported = export_module(Elman(4, 8, 2, activation, "identity"), tmp_path / "elman" / "1", "float32[4]")
    assert exported.contract.time_axis == 0
    assert [o.name for o in exported.contract.outputs] == ["o"]


def test_dense_connections_reach_from_everywhere_to_everywhere() -> None:
    """The output, and each layer's input, change with each layer below, not only through the one between."""
    shape = StackShape(2, "elman", layers=3, units=4, connect="dense")
    stack = Stack(shape)
    assert [layer.W_hx.shape[1] for layer in stack.layers] == [2, 6, 10]
    output, after = stack(torch.randn(1, 1, 2), *stack.initial_state(1))
    torch.testing.assert_close(output[0, 0].reshape(3, 4), after[:, 0])


def test_states_are_handed_in_and_out() -> None:
    stack = Stack(StackShape(2, "mingru", layers=2, units=4))
    steps = torch.randn(10, 3, 2)
    whole, *end = stack(steps, *stack.initial_state(3))
    first, *middle = stack(steps[:4], *stack.initial_state(3))
    second, *last = stack(steps[4:], *middle)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(last, end)


def test_a_learned_initial_state_is_learned() -> None:
    stack = Stack(StackShape(2, "gru", layers=1, units=4, learned=True))
    output, *_ = stack(torch.randn(1, 3, 2), *stack.initial_state(3))
    torch.autograd.backward(output.sum())
    assert stack.initial is not None
    assert bool(stack.initial.grad.abs().sum() > 0)


def test_dropout_drops_whole_units_between_layers_and_only_in_training() -> None:
    torch.manual_seed(4)
    shape = StackShape(2, "elman", layers=2, units=50, dropout=0.5)
    stack = Stack(shape)
    dropped = stack._dropped(torch.ones(6, 3, 50))
    assert bool((dropped == dropped[:1]).all())
    assert 0.3 < float((dropped == 0).float().mean()) < 0.7
    assert not bool((dropped[0, 0] == dropped[0, 1]).all())
    stack.eval()
    assert bool((stack._dropped(torch.ones(6, 3, 50)) == 1).all())


def test_gates_can_begin_with_a_long_memory() -> None:
    torch.manual_seed(5)
    stack = Stack(StackShape(1, "mingru", layers=1, units=200, memory=100))
    keep = torch.sigmoid(stack.layers[0].gate.bias.detach())
    steps = 1 / (1 - keep)  # how long a unit keeps what it has, on average
    assert float(steps.min()) > 1.9
    assert float(steps.max()) < 102
    assert float(steps.mean()) == pytest.approx(51, abs=6)


def test_an_orthogonal_start_keeps_lengths() -> None:
    layer = ElmanLayer(2, 16, start="orthogonal")
    x = torch.randn(16)
    assert float((layer.W_hh.detach() @ x).norm()) == pytest.approx(float(x.norm()), rel=1e-5)
    assert torch.equal(ElmanLayer(2, 3, start="identity").W_hh, torch.eye(3))


def test_names_that_do_not_exist_are_refused() -> None:
    shape = StackShape(2)
    for wrong in (replace(shape, kind="rnn"), replace(shape, connect="ring")):
        with pytest.raises(ConfigError, match="expected one of"):
            Stack(wrong)
    for wrong in (replace(shape, kind="elman", activation="selu"), replace(shape, kind="elman", start="zero")):
        with pytest.raises(ConfigError, match="expected one of"):
            Stack(wrong)
    assert set(KINDS) == {"elman", "lstm", "gru", "mingru"}
    assert math.isclose(float(ACTIVATIONS["sigmoid"](torch.zeros(()))), 0.5)
