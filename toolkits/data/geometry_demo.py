"""The geometry demos: how many problems of which kinds, and their folder (tables, a model with random weights, marker).

Light to import: what draws and what makes the model is loaded when it is needed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkits.data.demo_folder import write_marker

if TYPE_CHECKING:
    from toolkits.data.geometry_tables import GeometryRow, Given

GEOMETRY = "geometry"
GEOMETRY_RL = "geometry_rl"
"""Folders of the demos: all kinds with values in the picture, and what reinforcement learning is shown with."""
VERSION = 2
"""Raised when the content of a geometry demo changes."""
SIDES = tuple(range(112, 225, 28))
"""Sides of a geometry picture in pixels: whole image tokens, and room for the labels."""
PICTURE_SIDES = SIDES[1:]
"""Those with room for numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometrySettings:
    """train_rows, test_rows: problems; side: of a picture, in pixels (one of SIDES); max_level: hardest, 1 to 4; given:
    where the values stand; kinds: names with commas between, instead of all up to max_level (None); careless: the part
    of the rows in whose column ``taught`` the given number stands for the answer."""

    train_rows: int = 4000
    test_rows: int = 500
    side: int = 140
    max_level: int = 4
    given: Given = "picture"
    kinds: str | None = None
    careless: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be drawn."""
        known = SIDES if self.given == "text" else PICTURE_SIDES
        if self.side not in known:
            raise ValueError(
                f"--side={self.side}: pictures with --given={self.given} are {', '.join(map(str, known))} pixels wide; "
                "take one of them"
            )
        if not 1 <= self.max_level <= 4:
            raise ValueError(f"--max-level={self.max_level}: kinds have levels 1 to 4; take one of them")
        if not 0 <= self.careless <= 1:
            raise ValueError(f"--careless={self.careless:g}: a part of the rows lies between 0 and 1")
        if min(self.train_rows, self.test_rows) < 1:
            raise ValueError(
                f"--train-rows={self.train_rows} and --test-rows={self.test_rows}: both must be at least 1"
            )


RL_SETTINGS = GeometrySettings(
    train_rows=6000,
    test_rows=500,
    side=112,
    given="text",
    kinds="triangle_equal_perimeter,square_perimeter,hexagon_perimeter,square_diagonal,midline",
    careless=0.6,
)
"""One number is given, and the text asks for x or for the perimeter: what is to be done with the number only the
picture tells. The warm-up's teacher is careless: in 6 of 10 problems he repeats the number. A model that has learned
from him can do both, and says the wrong thing more often; reinforcement learning finds out which is rewarded."""


def check_kinds(settings: GeometrySettings) -> None:
    """Raises ValueError for kinds that there are not."""
    from toolkits.data.geometry_tables import choose_kinds

    choose_kinds(settings.kinds, settings.max_level, settings.given)


def made_from(settings: GeometrySettings) -> dict[str, Any]:
    """What a demo's marker says of how it was made."""
    return {"version": VERSION, **asdict(settings)}


def write_geometry(folder: Path, settings: GeometrySettings) -> None:
    """Writes tables, model and, last, the marker into the empty ``folder``.

    Raises ValueError for kinds that there are not, or for more rows than there are pictures.
    """
    from toolkits.data import demo_model, geometry_tables
    from toolkits.data.demo_texts import geometry_texts

    splits = make_splits(settings)
    for split, rows in splits.items():
        geometry_tables.write_rows(rows, split, folder / f"{split}.parquet")
    shape = demo_model.DemoShape(image_side=settings.side)
    parameters = demo_model.write_model(folder / "model", geometry_texts(splits["train"]), shape, settings.seed)
    write_marker(folder, {**made_from(settings), "parameters": parameters})


def make_splits(settings: GeometrySettings) -> dict[str, list[GeometryRow]]:
    """The rows of "train" and "test". Raises ValueError as ``write_geometry``."""
    from toolkits.data import geometry_tables

    kinds = geometry_tables.choose_kinds(settings.kinds, settings.max_level, settings.given)
    return {
        split: geometry_tables.make_rows(
            split,
            count,
            side=settings.side,
            kinds=kinds,
            given=settings.given,
            seed=settings.seed,
            careless=settings.careless,
        )
        for split, count in (("train", settings.train_rows), ("test", settings.test_rows))
    }
