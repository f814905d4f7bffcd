"""Configs by their names, from wherever zoo is installed."""

from pathlib import Path

from tests.conftest import CONFIGS
from zoo.catalog.shipped_configs import expand_configs, find_config, shipped_configs


def test_all_configs_are_shipped():
    assert list(shipped_configs()) == sorted(path.stem for path in CONFIGS)


def test_a_name_is_found_and_a_path_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = shipped_configs()["mlp_iris"]
    assert find_config("mlp_iris") == find_config("mlp_iris.yaml") == shipped
    assert find_config("configs/mlp_iris.yaml") is None
    assert find_config("mlp_irises") is None
    Path("mlp_iris.yaml").write_text("model: MLPClassifier\n")
    assert find_config("mlp_iris.yaml") is None


def test_only_values_of_the_config_option_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = str(shipped_configs()["mlp_iris"])
    argv = ["fit", "-c", "mlp_iris", "--config=mlp_iris", "--run_name", "mlp_iris", "-c", "-c"]
    assert expand_configs(argv) == ["fit", "-c", file, f"--config={file}", "--run_name", "mlp_iris", "-c", "-c"]


def test_a_config_is_copied_once(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = zoo("config", "copy", "mlp_iris")
    assert (code, out) == (0, "wrote mlp_iris.yaml; `zoo fit -c mlp_iris.yaml` trains it\n")
    assert Path("mlp_iris.yaml").read_text() == shipped_configs()["mlp_iris"].read_text()
    Path("mlp_iris.yaml").write_text("edited")
    code, _, err = zoo("config", "copy", "mlp_iris")
    assert code == 2
    assert "mlp_iris.yaml exists already" in err
    assert Path("mlp_iris.yaml").read_text() == "edited"
    assert zoo("config", "copy", "mlp_iris", "folder.yaml")[0] == 0


def test_a_run_by_name(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = zoo("fit", "-c", "mlp_iris", "--trainer.max_epochs", 1)
    assert (code, err) == (0, "")
    assert Path("runs/mlp_iris/1/checkpoints/last.ckpt").exists()
