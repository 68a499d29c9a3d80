"""Every setting as a frozen, typed dataclass; recipes and overrides meet here.

A line under a field is its help on the command line, so there is one source for both. The roof may import this
package, and in the rooms the modules that ``ENTRIES`` of ``tests/test_architecture.py`` lists: those with an entry
function, with the class that does a verb's work, with its plan, or with what it builds. Others get plain keywords or a
frozen object of their own room (``StageConfig``). Two read fields of settings without importing them:
``training/session.py`` those of ``ComputeSettings``, ``methods.py`` the groups of its kinds of branches.
"""

from hetcl.settings.analysis import (
    ContrastSettings,
    EmbedSettings,
    ProbeSettings,
    resolve_contrast,
    resolve_embed,
    resolve_probe,
)
from hetcl.settings.compute import MAY_CHANGE, ComputeSettings, PixelSettings, lacked_by_older
from hetcl.settings.downstream import (
    EvaluateSettings,
    FinetuneSettings,
    PredictSettings,
    check_finetune,
    finetune_from_dict,
    resolve_evaluate,
    resolve_finetune,
    resolve_predict,
)
from hetcl.settings.parse import build_saved, documented, flatten, given_in, keys_of, to_dict
from hetcl.settings.pretrain import PretrainSettings, StageSettings, check, from_dict, resolve, stages_of
from hetcl.settings.recipes import recipe_names, recipe_text

__all__ = [
    "MAY_CHANGE",
    "ComputeSettings",
    "ContrastSettings",
    "EmbedSettings",
    "EvaluateSettings",
    "FinetuneSettings",
    "PixelSettings",
    "PredictSettings",
    "PretrainSettings",
    "ProbeSettings",
    "StageSettings",
    "build_saved",
    "check",
    "check_finetune",
    "documented",
    "finetune_from_dict",
    "flatten",
    "from_dict",
    "given_in",
    "keys_of",
    "lacked_by_older",
    "recipe_names",
    "recipe_text",
    "resolve",
    "resolve_contrast",
    "resolve_embed",
    "resolve_evaluate",
    "resolve_finetune",
    "resolve_predict",
    "resolve_probe",
    "stages_of",
    "to_dict",
]
