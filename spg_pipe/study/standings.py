"""What a league says: merits, gains over a baseline, and what leaving a target out would choose.

Figures are arrays (…, 4), see `LEAGUE_FIGURES`, NaN where undefined: (ways, 4) of a method on every
direction of a recipe, (candidates, ways, 4) of all candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spg_pipe.detector.coarse import FIGURES, known_mean
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import Direction
from spg_pipe.report.tables import LABELS, Table, digits
from spg_pipe.study.held_out import best
from spg_pipe.study.settings import short

LEAGUE_FIGURES = (*FIGURES, "pixel_aupro_0.3")
GAINS = ("image_auroc", "pixel_ap")
"""Figures that must not fall far below the published recipe's on any direction."""


def merits(figures: np.ndarray) -> np.ndarray:
    """(candidates,) from (candidates, ways, 4): the mean of `FIGURES`, each a mean over ways."""
    return known_mean(known_mean(figures, axis=1)[:, : len(FIGURES)], axis=1)


def left_out(figures: np.ndarray, ways: Sequence[Direction]) -> dict[str, int]:
    """Target → the candidate that is best where it plays no part, as target or as auxiliary set.

    Without the tolerance of `choose`, which prefers what is listed first: a list that was written
    with the targets in sight would then be chosen by them.
    """
    targets = dict.fromkeys(way.target for way in ways)
    return {target: best(merits(figures[:, others_of(target, ways)]), 0) for target in targets}


def others_of(target: str, ways: Sequence[Direction]) -> list[int]:
    """Which of the directions are left without a target; an `SpgError` if there is none."""
    others = [n for n, way in enumerate(ways) if target not in (way.aux, way.target)]
    if not others:
        raise SpgError(
            f"All directions of the recipe have {target} as target or auxiliary set, so nothing "
            "can be chosen without it. A league needs directions between more datasets."
        )
    return others


def worst_gains(figures: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """(candidates, 2): the least gain of each of `GAINS` over a baseline's (ways, 4) on any way."""
    columns = [LEAGUE_FIGURES.index(name) for name in GAINS]
    return np.asarray(np.fmin.reduce(figures - baseline, axis=1)[:, columns])


IN_SIGHT = "best in sight of all"
LEFT_OUT = "left-one-target-out"
CHOSEN = "choose, auxiliary set alone"


@dataclass(frozen=True)
class Standings:
    """The league's figures, means over seeds, and what follows from them."""

    ways: tuple[Direction, ...]
    settings: tuple[Mapping[str, Any], ...]
    """Of each candidate: `guides.atoms` → 32."""
    candidates: np.ndarray
    """(candidates, ways, 4)"""
    baselines: Mapping[str, np.ndarray]
    """Method → (ways, 4); gains are over the first."""
    chosen: Mapping[str, int]
    """Auxiliary set → the candidate that `choose` took on it; empty unless it was run on all."""

    def selections(self) -> dict[str, list[int]]:
        """How candidates are selected → the one taken for each direction."""
        without = left_out(self.candidates, self.ways)
        taken = {
            IN_SIGHT: [best(merits(self.candidates), 0)] * len(self.ways),
            LEFT_OUT: [without[way.target] for way in self.ways],
        }
        if self.chosen:
            taken[CHOSEN] = [self.chosen[way.aux] for way in self.ways]
        return taken

    def selected(self, taken: Sequence[int]) -> np.ndarray:
        """(ways, 4) figures of the candidates taken for each direction."""
        return np.asarray(self.candidates[taken, np.arange(len(self.ways))])

    def rows(self, about: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """A row for each method and direction, then their mean; `about` is added to each.

        Candidates by merit, with rank and worst gains in the row of the mean; baselines;
        selections, with the settings that each took.
        """
        rows = []
        gains = worst_gains(self.candidates, next(iter(self.baselines.values())))
        for rank, number in enumerate(_ranked(self.candidates), 1):
            each = [self.settings[number]] * len(self.ways)
            rows += self._rows("candidate", each, self.candidates[number])
            worst = zip(GAINS, gains[number].tolist(), strict=True)
            named = {f"{name}_worst_gain": gain for name, gain in worst}
            rows[-1] = {**self.settings[number], **rows[-1], "rank": rank, **named}
        nothing: list[Mapping[str, Any]] = [{}] * len(self.ways)
        for method, figures in self.baselines.items():
            rows += self._rows(method, nothing, figures)
        for selection, taken in self.selections().items():
            each = [self.settings[number] for number in taken]
            rows += self._rows(selection, each, self.selected(taken))
        return [{"method": row["method"], **row, **about} for row in rows]

    def _rows(
        self, method: str, values: Sequence[Mapping[str, Any]], figures: np.ndarray
    ) -> list[dict[str, Any]]:
        rows = [
            {"method": method, **own, "auxiliary": way.aux, "target": way.target, **_named(each)}
            for own, way, each in zip(values, self.ways, figures, strict=True)
        ]
        mean = {
            "method": method,
            "auxiliary": "mean",
            "target": "mean",
            **_named(known_mean(figures)),
        }
        return [*rows, mean | {"merit": float(merits(figures[None])[0])}]

    def tables(self, about: str) -> list[Table]:
        """Means of all; every direction; what was selected. `about` says what figures stand on."""
        return [self._means(about), self._directions(), self._selections()]

    def _means(self, about: str) -> Table:
        baseline, *_ = self.baselines
        gains = worst_gains(self.candidates, self.baselines[baseline])
        rows = []
        for rank, number in enumerate(_ranked(self.candidates), 1):
            worst = [f"{gain:+.3f}" for gain in gains[number]]
            rows.append((self._name(number), str(rank), *_cells(self.candidates[number]), *worst))
        rows += [(name, "", *_cells(each), "", "") for name, each in self.baselines.items()]
        heads = [f"Worst gain, {LABELS[name]}" for name in GAINS]
        return Table(
            f"{about} Means over {len(self.ways)} directions; worst gains are over {baseline}.",
            (self._names, "Rank", *_HEADS, *heads),
            tuple(rows),
            summary=len(self.baselines),
        )

    def _directions(self) -> Table:
        shown = {self._name(number): self.candidates[number] for number in _ranked(self.candidates)}
        shown |= self.baselines
        image, area = (LEAGUE_FIGURES.index(name) for name in GAINS)
        rows = tuple(
            (name, *(f"{digits(each[image])} / {digits(each[area])}" for each in figures.tolist()))
            for name, figures in shown.items()
        )
        heads = (self._names, *(f"{way.aux} → {way.target}" for way in self.ways))
        return Table("Image AUROC / pixel AP.", heads, rows, summary=len(self.baselines))

    def _selections(self) -> Table:
        selections, rows = self.selections(), []
        targets, sets = [way.target for way in self.ways], [way.aux for way in self.ways]
        for heading, selection, names in (
            ("without {}", LEFT_OUT, targets),
            ("choose on {}", CHOSEN, sets if self.chosen else []),
        ):
            for name in dict.fromkeys(names):
                ways = [n for n, each in enumerate(names) if each == name]
                taken = selections[selection][ways[0]]
                cells = _cells(self.candidates[taken, ways])
                rows.append((heading.format(name), self._name(taken), *cells))
        means = {name: self.selected(taken) for name, taken in selections.items()}
        rows += [(name, "", *_cells(figures)) for name, figures in means.items()]
        above = [_summary(means[name]) for name in (IN_SIGHT, LEFT_OUT)]
        rows.append(("in sight, above left-out", "", *map(digits, above[0] - above[1])))
        return Table(
            "What is taken without each target, on the directions to it; and means over all.",
            ("Selection", self._names, *_HEADS),
            tuple(rows),
            summary=len(means) + 1,
        )

    def _name(self, number: int) -> str:
        return ", ".join(short(value) for value in self.settings[number].values())

    @property
    def _names(self) -> str:
        return ", ".join(self.settings[0])


_HEADS = ("Merit", *(LABELS[name] for name in LEAGUE_FIGURES))


def _summary(figures: np.ndarray) -> np.ndarray:
    """(5,) merit and mean figures of (ways, 4)."""
    return np.concatenate([merits(figures[None]), known_mean(figures)])


def _cells(figures: np.ndarray) -> list[str]:
    return [digits(value) for value in _summary(figures).tolist()]


def _named(figures: np.ndarray) -> dict[str, float]:
    return dict(zip(LEAGUE_FIGURES, figures.tolist(), strict=True))


def _ranked(candidates: np.ndarray) -> list[int]:
    """By merit, the best first."""
    ranked: list[int] = np.argsort(-merits(candidates), kind="stable").tolist()
    return ranked
