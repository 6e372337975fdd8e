"""Which input comes back as which output: by name, by shape, by running it; and what is asked or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.adopt import AdoptOptions, Refused, Unclear, adopt, adoption
from export.adopt.edges import build
from export.adopt.names import matches
from export.adopt.report import as_json
from pipeline.errors import ConfigError
from tests.unit.export.adopt.graphs import Maker, elman, integrators, lstm


def pairs(file: Path, tmp_path: Path, **options: object) -> dict[str, str]:
    found = as_json(adopt(file, tmp_path / "out" / "1", AdoptOptions(**options)))  # type: ignore[arg-type]
    return {s["input"]: s["output"] for s in found["states"]}


@pytest.mark.parametrize(
    ("inputs", "outputs", "want"),
    [
        (["h", "c"], ["hn", "cn"], {"h": "hn", "c": "cn"}),
        (["h0", "c0"], ["cn", "hn"], {"h0": "hn", "c0": "cn"}),
        (["state"], ["output", "stateN"], {"state": "stateN"}),
        (
            ["in_cache0", "in_cache1"],
            ["out_cache1", "out_cache0"],
            {"in_cache0": "out_cache0", "in_cache1": "out_cache1"},
        ),
        (
            ["cached_key_0", "cached_key_1"],
            ["new_cached_key_0", "new_cached_key_1"],
            {"cached_key_0": "new_cached_key_0", "cached_key_1": "new_cached_key_1"},
        ),
        (["past_key_values.0.key"], ["present.0.key"], {"past_key_values.0.key": "present.0.key"}),
        (["hx", "cx"], ["hy", "cy"], {"hx": "hy", "cx": "cy"}),
        (["prev"], ["next"], {"prev": "next"}),
        (["h_0", "h_1"], ["h_0_out", "h_1_out"], {"h_0": "h_0_out", "h_1": "h_1_out"}),
        (["lstmStateIn"], ["lstmStateOut"], {"lstmStateIn": "lstmStateOut"}),
        (["input"], ["output"], {}),
        (["input_2", "input_3"], ["activation_2", "stack_3"], {}),
    ],
)
def test_names_propose_pairs(inputs, outputs, want):
    assert matches(inputs, outputs) == want


def test_a_recurrent_nodes_states_are_followed_through_the_graph_whatever_they_are_called(tmp_path):
    file = lstm(tmp_path, ["t", "b", 8], [1, "b", 16], ("a", "p", "q", "r", "s", "u"), (2, 0, 1))
    assert pairs(file, tmp_path) == {"p": "s", "q": "u"}


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]])
def test_states_of_one_shape_are_told_apart_by_running_in_any_order(tmp_path, order):
    names = [("a", "p"), ("b", "q"), ("c", "r")]
    assert pairs(integrators(tmp_path, names, order), tmp_path) == dict(names)


def test_more_states_of_one_shape_than_there_is_time_to_try_in_every_order(tmp_path: Path) -> None:
    names = [(f"a{k}", f"b{(5 * k + 3) % 8}") for k in range(8)]
    file = integrators(tmp_path, names, [3, 1, 7, 0, 5, 2, 6, 4])
    assert pairs(file, tmp_path) == dict(names)


def test_runs_are_believed_before_names_and_it_is_said(tmp_path):
    names = [("state0", "state1_out"), ("state1", "state2_out"), ("state2", "state0_out")]
    adopted = adopt(integrators(tmp_path, names, [2, 0, 1]), tmp_path / "out" / "1")
    assert adopted.plan.pairs.states == dict(names)
    assert any("contradict the names" in note for note in adopted.notes)


def test_a_state_is_found_by_its_shape_where_nothing_else_could_be_one(tmp_path):
    m = Maker()
    m.give("a", ["b", 6])
    m.give("q", ["b", 10])
    m.op("Tanh", m.op("Add", m.linear("a", 6, 10), m.op("MatMul", "q", m.random(10, 10))), out="r")
    m.op("MatMul", "r", m.random(10, 3), out="z")
    m.show("r", ["b", 10])
    m.show("z", ["b", 3])
    assert pairs(m.save(tmp_path), tmp_path) == {"q": "r"}


def test_step_input_and_output_of_one_shape_are_no_state_pair(tmp_path):
    assert pairs(elman(tmp_path, width=10), tmp_path) == {"h": "hn"}
    assert pairs(elman(tmp_path, ("audio_in", "state_in", "audio_out", "state_out"), 10), tmp_path) == {
        "state_in": "state_out"
    }


def test_a_hidden_state_shows_by_its_bounds(tmp_path):
    """a and p have one shape, and so have b and q: only q stays between -1 and 1, however loud its step is."""
    assert pairs(elman(tmp_path, ("a", "b", "p", "q"), 6), tmp_path) == {"b": "q"}


@pytest.mark.parametrize("width", [10])
def test_what_no_run_tells_is_asked_for_with_flags_that_answer_it(tmp_path, width):
    file = elman(tmp_path, ("a", "b", "p", "q"), width)
    with pytest.raises(Unclear, match=r"--state") as asked:
        adopt(file, tmp_path / "out" / "1")
    assert asked.value.flags[0].startswith("--step a --state b=")
    assert not (tmp_path / "out").exists()
    assert pairs(file, tmp_path, states=["b=q"], steps=["a"]) == {"b": "q"}


def test_an_output_that_is_the_state_is_left_an_output(tmp_path):
    m = Maker()
    m.give("x", ["b", 6])
    m.give("u", ["b", 5])
    m.op("Add", m.op("Mul", "u", m.value(0.5)), m.linear("x", 6, 5), out="v")
    m.op("Identity", "v", out="w")
    m.show("v", ["b", 5])
    m.show("w", ["b", 5])
    assert pairs(m.save(tmp_path), tmp_path) == {"u": "w"}


def _grows(m: Maker) -> None:
    m.give("past", ["b", "t", 4])
    m.op("Concat", "past", m.op("Unsqueeze", m.linear("x", 6, 4), m.value([1])), axis=1, out="present")
    m.op("ReduceMean", "present", axes=[1], keepdims=0, out="y")
    m.show("y", ["b", 4])
    m.show("present", ["b", "t2", 4])


def _grows_unnamed(m: Maker) -> None:
    m.give("q", ["b", "t", 4])
    m.op("Concat", "q", m.op("Unsqueeze", m.linear("x", 6, 4), m.value([1])), axis=1, out="z")
    m.op("ReduceMean", "z", axes=[1], keepdims=0, out="y")
    m.show("y", ["b", 4])
    m.show("z", ["b", "t2", 4])


def _no_output(m: Maker) -> None:
    m.give("h", ["b", 5])
    m.op("Tanh", m.op("Add", m.linear("x", 6, 5), m.op("MatMul", "h", m.random(5, 5))), out="y")
    m.linear("y", 5, 3)
    m.op("Identity", m.nodes[-1].output[0], out="z")
    m.show("z", ["b", 3])


def _ignored(m: Maker) -> None:
    m.give("h", ["b", 5])
    m.op("Identity", "h", out="unused")
    m.op("Tanh", m.linear("x", 6, 5), out="hn")
    m.op("Identity", m.linear("hn", 5, 3), out="y")
    m.show("y", ["b", 3])
    m.show("hn", ["b", 5])


def _unchanged(m: Maker) -> None:
    m.give("h", ["b", 5])
    m.op("Identity", "h", out="hn")
    m.op("Add", m.linear("x", 6, 5), "h", out="y")
    m.show("y", ["b", 5])
    m.show("hn", ["b", 5])


def _random(m: Maker) -> None:
    m.give("h", ["b", 6])
    noise = m.op("Mul", m.op("RandomNormalLike", "x"), m.value(0.01))
    m.op("Add", m.op("Mul", "h", m.value(0.5)), m.op("Add", "x", noise), out="hn")
    m.op("Tanh", "hn", out="y")
    m.show("y", ["b", 6])
    m.show("hn", ["b", 6])


def _stateless(m: Maker) -> None:
    m.op("Tanh", m.linear("x", 6, 6), out="y")
    m.show("y", ["b", 6])


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (_grows, "past grows with every step"),
        (_grows_unnamed, "q grows with every step"),
        (_no_output, "state h .* has no output"),
        (_ignored, "ignores what it is given back"),
        (_unchanged, "comes back as hn just as it went in"),
        (_random, "draws at random .*RandomNormalLike"),
        (_stateless, "no input comes back as an output"),
    ],
)
def test_what_cannot_be_served_right_is_refused_with_the_reason(tmp_path, build: Callable[[Maker], None], reason):
    m = Maker()
    m.give("x", ["b", 6])
    build(m)
    with pytest.raises(Refused, match=reason):
        adopt(m.save(tmp_path), tmp_path / "out" / "1")
    assert not (tmp_path / "out").exists()


def test_a_recurrent_node_that_begins_with_an_input_nobody_gives_back_is_refused_whatever_the_names(tmp_path):
    m = Maker()
    for name, dims in (("a", ["t", "b", 8]), ("p", [1, "b", 16]), ("q", [1, "b", 16])):
        m.give(name, dims)
    m.lstm("a", "p", "q", 8, 16, "r", "lost")
    m.op("Identity", m.linear(m.op("Squeeze", "r", m.value([0])), 16, 3), out="z")
    m.show("z", ["b", 3])
    m.show("r", [1, "b", 16])
    with pytest.raises(Refused, match=r"q .* has no output"):
        adopt(m.save(tmp_path), tmp_path / "out" / "1")


@pytest.mark.parametrize("direction", ["bidirectional", "reverse"])
@pytest.mark.parametrize("steps", ["t", 5])
@pytest.mark.parametrize("names", [("x", "h", "c", "y", "hn", "cn"), ("a", "p", "q", "r", "s", "u")])
def test_a_layer_that_runs_backwards_over_time_is_refused(tmp_path, direction, steps, names):
    ways = 2 if direction == "bidirectional" else 1
    file = lstm(tmp_path, [steps, "b", 8], [ways, "b", 16], names, direction=direction)
    with pytest.raises(Refused, match=r"backwards over time"):
        adopt(file, tmp_path / "out" / "1")


@pytest.mark.parametrize("how", ["reverse", "lookahead"])
def test_a_graph_that_looks_ahead_is_refused_without_a_recurrent_node_to_say_so(tmp_path, how):
    m = Maker()
    m.give("x", ["b", "t", 6])
    m.give("h", ["b", 6])
    total = m.op("CumSum", "x", m.value(1), reverse=int(how == "reverse"))
    if how == "lookahead":
        later = m.op("Slice", "x", m.value([1]), m.value([2**31]), m.value([1]))
        padded = m.op("Pad", later, m.value([0, 0, 0, 0, 1, 0]))
        total = m.op("Add", total, padded)
    m.op("Add", total, m.op("Unsqueeze", "h", m.value([1])), out="y")
    m.op("Gather", "y", m.value(0 if how == "reverse" else -1), axis=1, out="hn")
    m.show("y", ["b", "t", 6])
    m.show("hn", ["b", 6])
    with pytest.raises(Refused, match=r"not there yet"):
        adopt(m.save(tmp_path), tmp_path / "out" / "1")


def test_what_is_not_there_is_named(tmp_path):
    file = elman(tmp_path)
    for options, message in (
        ({"states": ["g=hn"]}, "no input 'g'; it has x, h"),
        ({"states": ["h=z"]}, "no output 'z'; it has y, hn"),
        ({"constants": ["h=a"]}, "cannot be read as numbers"),
        ({"initial": ["h=1,2,3"]}, "3 values for"),
        ({"shapes": ["h=1"]}, "with 2 numbers"),
        ({"states": ["h=hn"], "constants": ["h=1"]}, "say it once"),
    ):
        with pytest.raises(ConfigError, match=message):
            adopt(file, tmp_path / "out" / "1", AdoptOptions(**options))
    with pytest.raises(ConfigError, match=r"the name 'my model' may have letters"):
        adopt(file, tmp_path / "my model" / "1")
    assert adopt(file, tmp_path / "plain").contract.label == "plain/1"


def test_a_file_with_a_contract_is_ours_already(tmp_path):
    adopted = adopt(elman(tmp_path), tmp_path / "out" / "1")
    with pytest.raises(Refused, match=r"has a contract already"):
        adopt(adopted.file, tmp_path / "again" / "1")


def test_the_proof_finds_a_graph_that_was_changed(tmp_path, monkeypatch):
    """A weight a little off: nothing is written."""

    def wrong(*given):
        made = build(*given)
        weight = made.graph.initializer[0]
        values = np.frombuffer(weight.raw_data, np.float32) * np.float32(1.001)
        weight.raw_data = values.tobytes()
        return made

    monkeypatch.setattr(adoption, "build", wrong)
    with pytest.raises(Refused, match=r"not proven"):
        adopt(elman(tmp_path), tmp_path / "out" / "1")
    assert not (tmp_path / "out").exists()


def test_a_cache_that_grows_at_fixed_sizes_is_told_as_what_it_is(tmp_path):
    m = Maker()
    m.give("x", [1, 6])
    m.give("cache", [1, 5, 4])
    m.op("Concat", "cache", m.op("Unsqueeze", m.linear("x", 6, 4), m.value([1])), axis=1, out="cache_out")
    m.op("ReduceMean", "cache_out", axes=[1], keepdims=0, out="y")
    m.show("y", [1, 4])
    m.show("cache_out", [1, 6, 4])
    with pytest.raises(Refused, match=r"cache grows with every step"):
        adopt(m.save(tmp_path), tmp_path / "out" / "1")


def test_of_two_outputs_alike_the_bounded_one_is_the_hidden_state(tmp_path):
    file = elman(tmp_path, ("input", "input_1", "output", "output_1"), 10)
    assert pairs(file, tmp_path) == {"input_1": "output_1"}


def test_a_step_that_sounds_like_a_state_is_one_where_it_is_said(tmp_path):
    m = Maker()
    for name, width in (("x", 6), ("context", 3), ("h", 5)):
        m.give(name, ["b", width])
    fresh = m.op("Add", m.linear("x", 6, 5), m.linear("context", 3, 5))
    m.op("Tanh", m.op("Add", fresh, m.op("MatMul", "h", m.random(5, 5))), out="hn")
    m.op("Identity", m.linear("hn", 5, 2), out="y")
    m.show("y", ["b", 2])
    m.show("hn", ["b", 5])
    file = m.save(tmp_path)
    with pytest.raises(Refused, match=r"context .* has no output.*--step context"):
        adopt(file, tmp_path / "out" / "1")
    assert pairs(file, tmp_path, steps=["context"]) == {"h": "hn"}


@pytest.mark.parametrize("order", ["backwards", "forwards", "every other"])
def test_a_layer_unrolled_backwards_over_the_frames_of_a_step_is_refused(tmp_path, order):
    """No recurrent node, no free axis: only what changes what tells it from a step of six frames, or of features."""
    frames, m = 6, Maker()
    m.give("x", ["b", frames, 4])
    m.give("h", ["b", 8])
    w, u = m.random(4, 8), m.random(8, 8)
    places = list(range(frames))
    if order == "backwards":
        places.reverse()
    elif order == "every other":
        places = [1, 0, 3, 2, 5, 4]
    h, rows = "h", {}
    for t in places:
        frame = m.op("Gather", "x", m.value(np.array(t)), axis=1)
        h = m.op("Tanh", m.op("Add", m.op("MatMul", frame, w), m.op("MatMul", h, u)))
        rows[t] = m.op("Unsqueeze", h, m.value([1]))
    m.op("Identity", m.linear(m.op("Concat", *(rows[t] for t in range(frames)), axis=1), 8, 3), out="y")
    m.op("Identity", h, out="hn")
    m.show("y", ["b", frames, 3])
    m.show("hn", ["b", 8])
    file = m.save(tmp_path)
    if order == "backwards":
        with pytest.raises(Refused, match=r"along axis 1 of x, inside a step, .* a layer runs backwards over time"):
            adopt(file, tmp_path / "out" / "1")
        assert adopt(file, tmp_path / "out" / "1", AdoptOptions(time_axis="none")).contract.time_axis is None
    else:
        assert adopt(file, tmp_path / "out" / "1").contract.time_axis is None
