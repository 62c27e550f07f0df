# SPDX-License-Identifier: MPL-2.0

import json
from functools import partial

import pytest
from PIL import Image

from starsr.training import ablation
from starsr.training.ablation import PAPER, Judge, Study, Table, df


@pytest.fixture
def study(photos, tmp_path, monkeypatch):
    """Two variants, one of them in two tables, and two photographs, one of them held out."""
    folder = tmp_path / "media" / "kodak"
    folder.mkdir(parents=True)
    for name, photo in (("03", "photo0"), ("18", "photo1")):
        Image.open(photos / f"{photo}.png").resize((480, 400)).save(folder / f"{name}.png")
    tables = [
        Table("DF loss", {"none": df(separation="none"), "paper": PAPER}, (1,)),
        Table("Evaluations", {"paper": PAPER}, (1, 3)),
    ]
    monkeypatch.setattr(ablation, "TABLES", tables)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(ablation, "Judge", partial(Judge, frames=2, side=128, photos=1))
    return Study(
        folder.parent, tmp_path / "runs", tmp_path / "results.json", iterations=2, seeds=2, clips=2
    )


def test_runs_are_made_once_and_fill_the_tables(study, monkeypatch):
    study.fill()
    results = study.results()
    # Two variants with two seeds; the one in both tables is measured for both.
    assert sorted(sorted(row) for row in results.values()) == [["1"], ["1"], ["1", "3"], ["1", "3"]]
    assert results == json.loads(study.results_file.read_text())
    figures = [json.dumps(row, sort_keys=True) for row in results.values()]
    assert len(set(figures)) == 4, "runs that differ in variant or seed have the same figures"

    assert study.judge.measure(study.train(PAPER, 1), 1) == results[study.key(PAPER, 1)]["1"]

    def refuse(*_):
        raise AssertionError("a finished run is made again")

    monkeypatch.setattr(Study, "train", refuse)
    study.fill()
    tables = study.tables()
    assert tables.count("## ") == 2 and "not run" not in tables
    assert [
        line.split(" | ")[:2] for line in tables.splitlines() if line.startswith("| paper")
    ] == [
        ["| paper", "1"],
        ["| paper", "1"],
        ["| paper", "3"],
    ]


def test_a_missing_run_is_reported(study):
    with pytest.raises(LookupError, match="leave --tables-only out"):
        study.tables()
    figures = dict.fromkeys(ablation.FORMS, 1.0)
    study.results_file.write_text(json.dumps({study.key(PAPER, 0): {"1": figures, "3": figures}}))
    assert study.tables().count("not run") == len(ablation.FORMS)
