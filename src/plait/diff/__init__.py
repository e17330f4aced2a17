"""How far apart models are, tensor by tensor, and what that says about them.

The first model is the one that the others are measured against; a delta is model - first, in float32. Numbers are sums over
pieces of a few rows, so a model of any size needs the memory of a few pieces; whatever is a checkpoint can be compared, a merge
that has not been written too.

`sides` what is compared, and which tensors pair up; `sums`, `spectrum` the numbers of a tensor; `measure` gathers them;
`comparison` does so for all tensors; `vocabulary` tokens, templates, config; `verdicts` what it all means; `facts` as JSON;
`page`, `plots` HTML; `phrases` numbers for people.
"""

from plait.diff.comparison import Comparison as Comparison
from plait.diff.comparison import compare as compare
