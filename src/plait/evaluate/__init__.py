"""Scores: any number of models, written or not, side by side on the same items.

records        an item's measures, a task, a subject
tasks/         one kind of task a file; the folder is the registry
subjects       a model folder, a Hub id or a recipe, as what is scored
network        running a model: what it writes, how probable it finds a text
cache          measures of items that were worked on before
intervals      paired bootstrap
compare        the whole of it: subjects × tasks → scores and differences
tables         for people: plain text and Markdown
"""
