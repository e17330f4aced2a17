"""Models that spell, pack or cut one architecture differently, brought into line with the one whose shape the output has.

That one is the base, or the first model. The others are seen through views (`experts`: layouts of experts, `spelling`: names) so
that one tensor has one name; what still differs is stated for each tensor, and stops the merge unless its meaning is clear:

* a module that a model lacks altogether (the vision tower, for a text model) is made of the others, or copied from the base;
* so is a tensor that serves vision or audio, for a model that has nothing of the kind;
* a head over something else (`score.weight` of a classifier) is not merged with a model that has none;
* layers for multi-token prediction may be absent;
* with `--allow-crimes`, whatever has no counterpart of the same shape.
"""

from plait.align.models import aligned as aligned
