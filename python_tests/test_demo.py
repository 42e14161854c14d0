"""`l0sign demo`: what it prints and writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from l0sign_cuda import data, demo
from l0sign_cuda.cli import main


@pytest.mark.slow
def test_the_demo_finds_what_was_planted(tmp_path: Path, capsys: Any) -> None:
    assert main(["demo", "--out", str(tmp_path / "new" / "demo")]) == 0
    printed = capsys.readouterr().out
    assert "SIGN:\n" in printed and "L0-SIGN:\n" in printed
    content = json.loads((tmp_path / "new" / "demo" / "metrics.json").read_text())
    sign, l0_sign = content["models"]
    assert (sign["model"], l0_sign["model"]) == ("SIGN", "L0-SIGN")
    assert sign["edges_kept"] == 1 and "recall" not in sign
    assert l0_sign["edges_kept"] < 0.45
    assert l0_sign["auc"] > sign["auc"] - 0.01 and l0_sign["auc"] > content["optimal_auc"] - 0.02
    assert l0_sign["recall"] == 1 and l0_sign["precision"] >= 0.5
    assert {(pair["first"], pair["second"]) for pair in content["interactions"] if pair["planted"]} == {
        tuple(pair) for pair in content["planted"]
    }
    assert f"{l0_sign['auc']:.4f}" in printed and f"{content['optimal_auc']:.4f}" in printed
    assert (tmp_path / "new" / "demo" / "epochs.png").read_bytes().startswith(b"\x89PNG")


def test_a_demo_that_finds_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = data.planted(600)
    monkeypatch.setattr(data, "planted", lambda: planted)
    collapsing = demo.SETTINGS.replace(
        epochs=2, batch_size=16, l0_weight=50.0, l0_warmup_epochs=0, lr=0.1, edge_lr_factor=1.0
    )
    monkeypatch.setattr(demo, "SETTINGS", collapsing)
    with pytest.warns(UserWarning, match="all edges are closed"):
        text = demo.run(tmp_path)
    assert "none" in text.splitlines()
    row = json.loads((tmp_path / "metrics.json").read_text())["models"][1]
    assert row["precision"] is None and row["recall"] == 0


def test_score() -> None:
    truth = {("a", "b"), ("c", "d")}
    assert demo.score({("a", "b"), ("a", "c")}, truth) == {"precision": 0.5, "recall": 0.5}
    assert demo.score(truth, truth) == {"precision": 1, "recall": 1}
    nothing = demo.score(set(), truth)
    assert math.isnan(nothing["precision"]) and nothing["recall"] == 0
