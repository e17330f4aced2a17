"""Mixtures of experts out of dense models: a router and the mlps of several models in place of a base's mlp.

`families` which classes fit which dense models, as data; `mixture` from a checked file and its models to a plan; `expert` noise
and scale on an expert's weights; `gates` the router's rows; `states` what enters each layer of the base, layer by layer.
"""

from plait.moe.mixture import Prepared as Prepared
from plait.moe.mixture import prepare as prepare
