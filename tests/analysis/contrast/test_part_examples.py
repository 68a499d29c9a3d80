"""Examples of what each part of an embedding finds: which queries are shown, and what stands in the columns."""

from __future__ import annotations

import numpy as np

from hetcl.analysis.contrast import sheets
from hetcl.analysis.contrast.part_examples import choose, map_of


def test_each_way_it_can_come_out_is_shown_once_by_its_median() -> None:
    rows = {  # semantic, spatial, all together
        "Every part": [(1, 1, 1)] * 3,
        "Only the semantic": [(1, 0, 1)] * 2,
        "Only the spatial": [(0, 1, 1)] * 4,
        "No part alone": [(0, 0, 1)],
        "A part finds it, all together do not": [(1, 0, 0), (1, 1, 0)],
        "Neither": [(0, 0, 0)] * 5,
    }
    table = np.array([row for kind in rows.values() for row in kind], bool)
    overlap = np.arange(len(table)) / 100
    right = {name: table[:, i] for i, name in enumerate(["semantic alone", "spatial alone", "all together"])}
    chosen = choose(right, overlap)
    assert len(chosen) == len(rows)
    start = 0
    for (words, row), (kind, held) in zip(chosen, rows.items(), strict=True):
        assert words.startswith(kind)
        assert words.endswith(f": {len(held)} of {len(table)} queries")
        assert row == start + (len(held) - 1) // 2
        start += len(held)
    shuffled = np.random.default_rng(0).permutation(len(table))
    again = choose({name: column[shuffled] for name, column in right.items()}, overlap[shuffled])
    assert [(words, int(shuffled[row])) for words, row in again] == chosen


def test_what_did_not_happen_is_not_shown() -> None:
    nothing = np.zeros(7, bool)
    chosen = choose({"semantic alone": nothing, "all together": nothing}, np.linspace(0, 1, 7))
    assert chosen == [("Neither any part nor all together find it: 7 of 7 queries", 3)]


def test_a_map_is_cut_out_of_the_vector_row_by_row() -> None:
    vector = np.concatenate([np.full(3, 9.0), [0, 0, 0, 1]]).astype(np.float32)
    image = np.asarray(map_of(vector, {"semantic": 3, "spatial": 4}, "spatial", 2)).astype(int)
    half = sheets.CELL // 2
    bright = image.sum(axis=2) > image.sum(axis=2).min()
    assert bright[half:, half:].all()
    assert not bright[:half].any()
    assert not bright[:, :half].any()


def test_a_map_of_several_channels_shows_how_strong_its_cells_are() -> None:
    vector = np.array([0, 3, 0, 0, 0, 4, 0, 0], np.float32)  # two channels of 2 x 2: cell (0, 1) is (3, 4)
    image = np.asarray(map_of(vector, {"edges": 8}, "edges", 2)).astype(int)
    half = sheets.CELL // 2
    bright = image.sum(axis=2) > image.sum(axis=2).min()
    assert bright[:half, half:].all()
    assert not bright[half:].any()
    assert not bright[:, :half].any()
