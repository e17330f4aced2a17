"""Models of other depth, or with layers in another order, without training: each operation is a recipe.

`layers` orders of layers; `similarity` which layers a model can best do without.
"""
