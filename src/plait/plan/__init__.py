"""The plan: how each output tensor is made, from headers alone. Nothing is read, everything is decided.

A plan is a flat list of steps in the order of the output, the layout of its shards, the output's config, and a stated reason
for each input tensor that does not reach the output.

`records` what a plan is; `make` makes one; `steps` one step for each output tensor, `values` its parameters; `findings` what
does not fit; `losses` what is left out, and why.
"""

from plait.plan.make import make_plan as make_plan
from plait.plan.records import Dropped as Dropped
from plait.plan.records import Given as Given
from plait.plan.records import Input as Input
from plait.plan.records import Made as Made
from plait.plan.records import Options as Options
from plait.plan.records import Plan as Plan
from plait.plan.records import Step as Step
