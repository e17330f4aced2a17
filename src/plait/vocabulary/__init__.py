"""Vocabularies: which tokens the output has, and the row of each model that each of them comes from.

`read` the tokens of a folder, as data; `unite` one vocabulary out of several, and tokens added or taken away; `rows` from
which row of which model each row comes, as index arrays; `realign` a checkpoint with these rows, gathered as it is read;
`write` the files of the output's tokenizer, and ids that follow it; `words` what is said of it; `shared` all of it for a
recipe, with `setting`.
"""
