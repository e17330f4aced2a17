"""Recipes: mergekit's YAML dialect, read with places, checked, in plait's nouns.

`document` text to a tree with line and column; `damage` mends for broken text; `grammar`, `keys` what may stand where;
`rules` what goes beyond mergekit; `setting` values that vary by layer and name; `load` the recipe itself; `kinds` which kind of
file it is; `schema` for editors.
"""

from plait.recipe.load import ModulePart as ModulePart
from plait.recipe.load import Recipe as Recipe
from plait.recipe.load import Settings as Settings
from plait.recipe.load import Slice as Slice
from plait.recipe.load import Source as Source
from plait.recipe.load import TokenizerRequest as TokenizerRequest
from plait.recipe.load import TokenRule as TokenRule
from plait.recipe.load import load as load
from plait.recipe.rules import BrickUse as BrickUse
from plait.recipe.rules import Otherwise as Otherwise
from plait.recipe.rules import Rule as Rule
from plait.recipe.rules import When as When
