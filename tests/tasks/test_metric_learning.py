"""recall@k against its definition, in every order and on two processes; embeddings that really learn."""

import pytest
import torch
from torch import Tensor, nn

from tests.processes import on_two
from zoo.losses import BatchTripletLoss, RankingLoss
from zoo.models import MLP
from zoo.tasks.metric_learning import MetricLearner, nearest_match_ranks, recall_at_k


def by_definition(embeddings: Tensor, labels: Tensor, k: int) -> float:
    hits = []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        if any(labels[j] == labels[i] for j in others):
            nearest = sorted(others, key=lambda j: float((embeddings[i] - embeddings[j]).square().sum()))[:k]
            hits.append(any(labels[j] == labels[i] for j in nearest))
    return sum(hits) / len(hits)


@pytest.mark.parametrize("numbers", [1, 100, 2**22])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_recall_equals_its_definition_in_blocks_of_any_size(k, numbers):
    torch.manual_seed(0)
    labels = torch.arange(60) % 12
    labels[-1] = 99  # without a mate: it does not count
    embeddings = torch.randn(100, 3)[labels] + torch.randn(60, 3) + 5
    assert 0.1 < by_definition(embeddings, labels, k) < 0.9
    ours = recall_at_k(nearest_match_ranks(embeddings, labels, numbers), k)
    assert float(ours) == pytest.approx(by_definition(embeddings, labels, k))


def test_recall_by_hand():
    embeddings, labels = torch.tensor([[0.0], [1.0], [3.0], [3.5], [9.0]]), torch.tensor([0, 1, 0, 1, 2])
    assert nearest_match_ranks(embeddings, labels).tolist() == [2, 3, 3, 2, 0]


@pytest.mark.parametrize("value", [0.0, 0.3, 1e4, float("nan")])
def test_embeddings_all_alike_have_no_recall(value):
    """Sorted by class, as validation data may be, the first of equal neighbours would be of the right class."""
    labels = torch.arange(10).repeat_interleave(20)
    assert recall_at_k(nearest_match_ranks(torch.full((200, 16), value), labels), 5) == 0


@pytest.mark.parametrize("loss", [None, BatchTripletLoss(0.5), BatchTripletLoss(0.5, "all"), RankingLoss()])
def test_each_loss_pulls_classes_apart(loss):
    torch.manual_seed(0)
    centres, labels = torch.randn(5, 8), torch.arange(5).repeat(8)
    noise = torch.randn(40, 30) * 2  # most of the input tells nothing
    x = torch.cat([centres[labels], noise], 1)
    module = MetricLearner(MLP(38, [32], 4), loss=loss)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    before = recall_at_k(nearest_match_ranks(module(x).detach(), labels), 1)
    for _ in range(100):
        optimizer.zero_grad()
        module.step((x, labels), "train").backward()
        optimizer.step()
    after = recall_at_k(nearest_match_ranks(module(x).detach(), labels), 1)
    assert before < 0.7
    assert after == 1


def test_embeddings_are_normalized_by_default():
    net, x = nn.Linear(6, 3), torch.randn(5, 6)
    assert torch.allclose(MetricLearner(net)(x).norm(dim=1), torch.ones(5))
    assert torch.equal(MetricLearner(net, normalize=False)(x), net(x))


def test_predictions_are_columns():
    module, x = MetricLearner(nn.Linear(6, 3)), torch.randn(5, 6)
    columns = module.predict_step((x, torch.zeros(5)), 0)
    assert list(columns) == ["e0", "e1", "e2"]
    assert columns["e1"] == module(x)[:, 1].tolist()


def test_an_outlier_makes_no_ties_of_its_neighbors():
    """Two pairs close to each other, and a sample a thousand times as far away."""
    x = torch.tensor([[0.0, 0.0], [0.1, 0.0], [1.0, 0.0], [1.1, 0.0], [3000.0, 0.0]])
    ranks = nearest_match_ranks(x, torch.tensor([0, 0, 1, 1, 1]))
    assert ranks[:4].tolist() == [1, 1, 1, 1]


def test_recall_of_samples_that_are_alone_in_their_class_is_not_defined():
    module = MetricLearner(nn.Identity())
    module.metrics["val"].update(torch.randn(4, 3), torch.arange(4))
    assert module.compute_metrics("val") == {}


@pytest.mark.parametrize("ks", [[], [5], [0, 1]])
def test_impossible_ks(ks):
    with pytest.raises(ValueError, match=r"recall@k must include 1"):
        MetricLearner(nn.Linear(6, 3), ks=ks)


def test_the_config_learns_and_its_checkpoint_predicts(zoo, here):
    code, out, err = zoo("fit", "-c", "configs/metric_mlp_digits.yaml", "--trainer.max_epochs", "3", "--run_dir", "r")
    assert (code, err) == (0, "")
    assert (here / "r/embeddings.png").stat().st_size > 10_000
    best = float(next(line for line in out.splitlines() if "best val/recall@1" in line).split()[-1])
    assert best > 0.9
    code, _, err = zoo("predict", "--ckpt_path", "r/checkpoints/best.ckpt", "--out", "e.csv")
    assert (code, err) == (0, "")
    lines = (here / "e.csv").read_text().splitlines()
    assert lines[0] == ",".join(["row", *(f"e{i}" for i in range(16))])
    assert len(lines) > 200


def test_two_processes_report_the_recall_of_one(zoo, here):
    """Of the 269 test samples one process holds 135, the other 134."""
    fit = zoo("fit", "-c", "configs/metric_mlp_digits.yaml", "--trainer.max_epochs", "1", "--run_dir", "r")
    assert fit[0] == 0, fit[2]
    common = ["test", "--ckpt_path", here / "r/checkpoints/last.ckpt", "--data.eval_batch_size", "50"]
    one = zoo(*common)
    main, other = on_two(here, *common)
    assert (one[0], main.code, other.code) == (0, 0, 0), main.err + other.err

    def recalls(text: str) -> list[str]:
        return [line for line in text.splitlines() if "recall" in line]

    assert len(recalls(one[1])) == 2
    assert recalls(one[1]) == recalls(main.out)
