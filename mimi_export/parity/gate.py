"""What `build` asks of a variant before it counts as good: its budgets, on one generated clip."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from mimi_export.contract.recipes import ConvertRecipe, ExportRecipe, Variant
from mimi_export.errors import ParityError
from mimi_export.media.signals import speech_like
from mimi_export.parity.clips import clips_from_arrays
from mimi_export.parity.run import Load, check_parity

SECONDS = 16.0  # more than the attention window of 10 s
FRAMES_PER_CALL = (1, "mixed")

Progress = Callable[[str], None]
logger = logging.getLogger(__name__)


class ParityGate:
    """Judges built variants; `mimi-export parity` measures more.

    Args:
        variants: configurations by name, with the budgets.
        model: the reference; by default the model that each variant's configuration, or its parent's, names.
        revision: of `model`.
        progress: told of each step.
        load: how a checkpoint is loaded from model and revision.
    """

    def __init__(
        self,
        variants: Mapping[str, Variant],
        load: Load,
        model: str | None = None,
        revision: str | None = None,
        progress: Progress = logger.info,
    ) -> None:
        self._variants, self._load, self._progress = variants, load, progress
        self._model, self._revision = model, revision

    def __call__(self, variant: Variant, path: Path) -> None:
        """Raise `ParityError`, naming every missed budget, unless the variant at `path` is good."""
        recipe = self._export_recipe(variant)
        run = check_parity(
            [path],
            clips_from_arrays({"speech": speech_like(SECONDS)}),
            model=self._model or recipe.model,
            revision=self._revision if self._model else recipe.revision,
            frames_per_call=FRAMES_PER_CALL,
            variants=self._variants,
            progress=self._progress,
            load=self._load,
        )
        reasons = [*run.missed, *(f"could not measure {item.directory}: {item.reason}" for item in run.not_measured)]
        if reasons:
            raise ParityError(f"{path} is built but not good: {'; '.join(reasons)}")

    def _export_recipe(self, variant: Variant) -> ExportRecipe:
        """Of the variant itself, or of the fp32 one that it was converted from."""
        recipe = variant.recipe
        while isinstance(recipe, ConvertRecipe):
            recipe = self._variants[recipe.parent].recipe
        return recipe
