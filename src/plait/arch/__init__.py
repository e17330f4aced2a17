"""Architectures without templates: what a model is made of, from names, shapes and config.json.

`anatomy` modules, stacks, loose tensors; `names` what names say; `ties` shared weights; `quirks` what the rules miss, as data;
`config`, `config_layers` the output's config.json.
"""

from plait.arch.anatomy import Architecture as Architecture
from plait.arch.anatomy import Module as Module
from plait.arch.anatomy import Place as Place
from plait.arch.anatomy import Stack as Stack
from plait.arch.anatomy import infer as infer
from plait.arch.anatomy import like as like
