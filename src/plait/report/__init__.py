"""Is a merge broken? What was written, measured against what it was made of.

The numbers are those of `plait.diff`: the merge stands among its parents, each tensor beside those that the recipe made it of.

`origin` the merge and its parents, side by side; `weights` finite, norms, angles, how much of each parent arrived;
`layers` which layers are in the wrong place; `words` tokens, template, tied and lost tensors; `running` perplexity, some
words; `build` all of it, as data; `page` HTML.
"""

from plait.report.build import Report as Report
from plait.report.build import report as report
