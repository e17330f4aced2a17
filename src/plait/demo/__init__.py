"""`plait demo`: the whole story on four small models that come with plait, offline.

models     a base model and three specialists made from it, 1.7 MB each
items      500 held-out questions for each of three skills
recipes    the merges, as files to learn from
score      how many of the questions a model answers
story      merge, score
table      what came out, for people and for programs
"""
