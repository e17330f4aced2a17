"""Models with other tokens: a donor's tokenizer, fewer tokens, more tokens, more rows.

`match` which tokens of two models are the same; `space` what is known of a matrix whose rows are wanted; `approximate` rows of
tokens that a model does not have, one file a way; `pursuit` the sparse approximation that is the default; `rows` a checkpoint
whose vocabulary has these rows; `changed` the plan; `transplant`, `trim`, `grow` the verbs.
"""
