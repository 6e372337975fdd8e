"""The mood of messages: a line end resets the net, and a small one is trained, exported and scored by commands."""

from __future__ import annotations

import random
import shlex
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from export.data.messages import LABELS, load_messages  # noqa: E402
from export.nets.sentiment import MessageGRU, SentimentNet, SentimentNetShape  # noqa: E402
from export.tasks.base import read_figures  # noqa: E402
from export.tasks.conversations import converse  # noqa: E402
from export.training.sentiment import SentimentProblem, shape_of, shares  # noqa: E402
from services.cli import main  # noqa: E402

NEWLINE = 1
MOODS = {"negative": ("awful", "hate", "worst"), "neutral": ("table", "meeting", "is"), "positive": ("love", "great")}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 1,600 messages whose mood two words tell, among others that tell nothing."""
    chance = random.Random(3)
    lines = ["sentiment,confidence,text"]
    for i in range(1600):
        label = LABELS[i % 3]
        words = chance.choices(MOODS[label], k=2) + chance.choices(["the", "my", "we", "on", "flight", "to"], k=5)
        chance.shuffle(words)
        lines.append(f"{label},{chance.choice(['0.67', '1'])},{' '.join(words)} {i}")
    file = tmp_path_factory.mktemp("judged") / "judged.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_without_line_ends_it_is_torchs_gru() -> None:
    torch.manual_seed(0)
    ours, theirs = MessageGRU(5, 7), torch.nn.GRU(5, 7)
    with torch.no_grad():
        for name, weight in zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), ours.parameters()):
            theirs.get_parameter(name).copy_(weight)
        steps, h = torch.randn(11, 3, 5), torch.randn(1, 3, 7)
        torch.testing.assert_close(ours(steps, torch.zeros(11, 3), h), theirs(steps, h))


def test_a_message_is_read_alike_wherever_it_stands() -> None:
    torch.manual_seed(1)
    net = SentimentNet(SentimentNetShape(30, NEWLINE, 0, embedding=8, units=16, members=2)).eval()
    message = torch.randint(2, 30, (9, 1))
    line_end = torch.full((1, 1), NEWLINE)
    before = torch.cat([torch.randint(0, 30, (200, 1)), line_end])
    with torch.inference_mode():
        alone, h_alone = net(message, *net.initial_state(1))
        later, h_later = net(torch.cat([before, message]), *(100 * s for s in net.initial_state(1)))
        trained = net.at(torch.cat([line_end, message]), torch.tensor([9])).mean(0)
    # What a line end leaves of before is far below the last bit; products of other lengths round differently.
    torch.testing.assert_close(alone, later[len(before) :], rtol=0, atol=1e-6)
    torch.testing.assert_close(h_alone, h_later, rtol=0, atol=1e-6)
    torch.testing.assert_close(alone[-1], trained)


def test_wanted_shares_follow_the_judges(judged: Path) -> None:
    messages = load_messages(str(judged)).train
    wanted = shares(messages).numpy()
    np.testing.assert_allclose(wanted.sum(1), 1, rtol=1e-6)
    assert wanted.argmax(1).tolist() == [m.label for m in messages]
    sure = [m.confidence == 1 for m in messages]
    assert wanted.max(1)[sure].min() > wanted.max(1)[np.logical_not(sure)].max()


def test_an_epoch_has_every_message_once_in_an_order_of_its_own(judged: Path) -> None:
    from export.data.words import word_tokenizer

    messages = load_messages(str(judged))
    tokenizer = word_tokenizer(m.record.decode() for m in messages.train)
    problem = SentimentProblem(messages, tokenizer, shape_of(tokenizer, embedding=4, units=4, members=1), lanes=16)

    def seen(epoch: int) -> list[tuple[int, ...]]:
        return [
            tuple(tokens[: last[i] + 1, i].tolist())
            for tokens, last, _ in problem.batches(epoch, 0)
            for i in range(len(last))
        ]

    assert sorted(seen(0)) == sorted(tuple(m.tolist()) for m in problem.train)
    assert seen(0) == seen(0)
    assert seen(0) != seen(1)


@pytest.mark.slow
def test_a_small_one_is_trained_exported_and_scored(
    judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = shlex.split("--members 2 --units 16 --embedding 16 --epochs 6 --learning-rate 0.01 --lanes 32 --threads 1")
    assert main(["train", "sentiment", "--data", str(judged), "--output", "run", *small]) == 0
    model = Path("models/mood/1")
    export = ["export", "--checkpoint", "run/checkpoint.pt", "--output", str(model), "--precision", "int8"]
    assert main(export) == 0
    figures = {f.name: f.value for f in read_figures(model).scores.figures}
    alone = figures["accuracy, held out, a message alone"]
    assert alone > 0.9
    assert all(figures[f"accuracy, held out, at position {p} of a conversation"] == alone for p in (1, 5, 20))
    assert 0.9 < figures["macro F1, held out, TF-IDF of words and pairs, logistic regression"] <= 1
    assert {f.name for f in model.iterdir()} == {
        "model.onnx", "tokenizer.json", "README.md", "figures.json", "confusion.png",
    }  # fmt: skip
    assert main(["score", str(model)]) == 0

    said = converse(model, [[b"we love my great flight\n"], [b"awful i hate it\n"], [b"\n"], [b"great love\n"]])
    assert [LABELS[i] for i in said[[0, 1, 3], 0].argmax(1)] == ["positive", "negative", "positive"]
    again = converse(model, [[b"great love\n"]])
    # The initial state is that of weights in 32 bits, what a line end leaves is that of the stored ones.
    np.testing.assert_allclose(said[3, 0], again[0, 0], atol=2e-3)

    capsys.readouterr()
    judged_again = judged.read_text().replace("flight", "train")
    judged.write_text(judged_again)
    assert main(export) == 2
    assert "trained on `judged.csv`" in capsys.readouterr().err
