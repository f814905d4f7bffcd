"""The loss by formula, a teacher that stays what and where it is, and a student that is better for it."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from zoo.models import MLP, MLPClassifier
from zoo.tasks import Classifier
from zoo.tasks.distillation import Distiller, load_teacher


def teacher() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def fit(module: L.LightningModule, folder, x: torch.Tensor, y: torch.Tensor, epochs: int) -> L.Trainer:
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder)  # fmt: skip
    trainer.fit(module, DataLoader([(x, y)], batch_size=None), DataLoader([(x, y)], batch_size=None))
    return trainer


def test_loss_equals_the_formula():
    net, guide, x, y = MLP(6, [8], 3), teacher().eval(), torch.randn(10, 6), torch.randint(0, 3, (10,))
    module = Distiller(net, guide, temperature=3.0, alpha=0.8, num_classes=3)
    module.setup("fit")
    p, q = (guide(x) / 3).softmax(1), (net(x) / 3).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    expected = 0.8 * 9 * divergence + 0.2 * F.cross_entropy(net(x), y)
    torch.testing.assert_close(module.step((x, y), "train"), expected)


def test_only_the_student_learns_and_is_saved(tmp_path):
    guide, x, y = teacher(), torch.randn(40, 6), torch.randint(0, 3, (40,))
    before = {name: tensor.clone() for name, tensor in guide.state_dict().items()}
    module = Distiller(MLP(6, [8], 3), guide, num_classes=3)
    trainer = fit(module, tmp_path, x, y, epochs=3)
    torch.testing.assert_close(guide.state_dict(), before, rtol=0, atol=0)  # the statistics of its BatchNorm too
    assert not guide.training
    assert all(p.grad is None for p in guide.parameters())
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in module.net.parameters()}
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    state = torch.load(tmp_path / "student.ckpt", weights_only=True)["state_dict"]
    plain = Classifier(MLP(6, [8], 3), num_classes=3)
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(x), module(x), rtol=0, atol=0)


def test_the_teacher_goes_where_the_student_goes():
    module = Distiller(MLP(6, [8], 3), teacher(), num_classes=3)
    module.setup("fit")
    module.double().train()
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.zeros(4).long()
    first, second = (module.step((x, y), "train").item() for _ in range(2))
    assert first == second, "its dropout is off"
    assert module.teacher[0].weight.dtype == torch.float64
    module.to("meta")
    assert module.teacher[0].weight.device.type == "meta"


def test_divergence_falls_without_a_label(tmp_path):
    """With alpha 1 the labels are worth nothing, and here they are nonsense: the student learns the teacher."""
    torch.manual_seed(0)
    guide, x = teacher().eval(), torch.randn(200, 6)
    module = Distiller(MLP(6, [32], 3), guide, temperature=2.0, alpha=1.0, num_classes=3, lr=1e-2)

    def divergence() -> float:
        with torch.no_grad():
            return float(
                F.kl_div(module(x).log_softmax(1), guide(x).log_softmax(1), log_target=True, reduction="batchmean")
            )

    def agreement() -> float:
        return float((module(x).argmax(1) == guide(x).argmax(1)).float().mean())

    before = divergence()
    trainer = fit(module, tmp_path, x, torch.randint(0, 3, (200,)), epochs=100)
    assert divergence() < before / 20
    assert agreement() > 0.9
    assert trainer.callback_metrics["val/teacher_accuracy"] < 0.5  # which tells that these labels are not the teacher's


@pytest.fixture
def trained(tmp_path):
    """A checkpoint as ``zoo fit`` writes it."""
    x, y = torch.randn(20, 6), torch.randint(0, 3, (20,))
    module = MLPClassifier(hidden=[8], input_dim=6, num_classes=3)
    trainer = fit(module, tmp_path, x, y, epochs=1)
    trainer.save_checkpoint(tmp_path / "teacher.ckpt")
    return module, tmp_path / "teacher.ckpt"


def test_weights_of_the_teacher_come_from_its_file(trained):
    module, path = trained
    student = Distiller(MLP(6, [4], 3), MLP(6, [8], 3), str(path), num_classes=3)
    student.setup("fit")
    torch.testing.assert_close(student.teacher.state_dict(), module.net.state_dict(), rtol=0, atol=0)


def test_ema_weights_are_the_teachers(trained):
    """As in ``zoo test``, which uses the EMA weights if there are any."""
    _, path = trained
    saved = torch.load(path, weights_only=True)
    saved["ema_params"] = {name: tensor + 1 for name, tensor in saved["state_dict"].items() if name.startswith("net.")}
    torch.save(saved, path)
    loaded = load_teacher(str(path), MLP(6, [8], 3)).state_dict()
    torch.testing.assert_close(
        loaded, {n.removeprefix("net."): t for n, t in saved["ema_params"].items()}, rtol=0, atol=0
    )


def test_prediction_needs_no_teacher():
    student = Distiller(MLP(6, [4], 3), teacher_checkpoint="long gone.ckpt", num_classes=3)
    student.setup("predict")
    assert len(student.predict_step(torch.randn(5, 6), 0)["class"]) == 5
    with pytest.raises(ValueError, match=r"there is no file long gone\.ckpt; train the teacher first"):
        student.setup("fit")


def test_mistakes_are_errors_of_one_line(trained):
    _, path = trained
    with pytest.raises(ValueError, match="needs a teacher, a teacher_checkpoint, or both"):
        Distiller(MLP(6, [4], 3), num_classes=3)
    with pytest.raises(ValueError, match="needs task multiclass, got binary"):
        Distiller(MLP(6, [4], 1), teacher(), num_classes=2, task="binary")
    with pytest.raises(ValueError, match=r"is not of this MLP: size mismatch for 1\.weight[^\n]*$"):
        load_teacher(str(path), MLP(6, [9], 3))
    with pytest.raises(ValueError, match="does not name the class of its model, so Distiller needs a teacher too"):
        load_teacher(str(path))
    module = Distiller(MLP(6, [4], 4), teacher(), num_classes=4)
    module.setup("fit")
    with pytest.raises(
        ValueError, match=r"logits are \(5, 4\), the teacher's \(5, 3\): give both the same num_classes"
    ):
        module.step((torch.randn(5, 6), torch.zeros(5).long()), "train")


@pytest.mark.slow
def test_the_config_with_a_trained_teacher(zoo, here):
    """The two commands of the config's first lines; the second time without naming the teacher's architecture."""
    code, _, err = zoo("fit", "-c", "configs/small_cnn_digits.yaml", "--trainer.max_epochs", "2")
    assert (code, err) == (0, "")
    trained = [
        "--model.teacher_checkpoint",
        "runs/small_cnn_digits/1/checkpoints/best.ckpt",
        "--trainer.max_epochs",
        "5",
    ]
    config = "configs/distill_cnn_to_mlp_digits.yaml"
    lines = []
    for run, more in (("named", []), ("unnamed", ["--model.teacher", "null"])):
        code, out, err = zoo("fit", "-c", config, *trained, *more, "--run_dir", run)
        assert (code, err) == (0, "")
        lines.append([line for line in out.splitlines() if line.startswith("  val/")])
    values = {name: float(value) for name, value in (line.split() for line in lines[0])}
    assert values["val/teacher_accuracy"] > 0.9
    assert values["val/accuracy"] > 0.8
    assert lines[0] == lines[1]
    code, _, err = zoo("predict", "--ckpt_path", "named/checkpoints/best.ckpt", "--out", "p.csv")
    assert (code, err) == (0, "")


def test_the_config_alone(zoo):
    code, out, err = zoo("fit", "-c", "configs/distill_cnn_to_mlp_digits.yaml", "--trainer.max_epochs", "3")
    assert (code, err) == (0, "")
    values = {line.split()[0]: float(line.split()[-1]) for line in out.splitlines() if line.startswith("  val/")}
    assert values["val/teacher_accuracy"] < 0.4, "an untrained teacher can be seen"
