"""The objectives of `train.loss`, a file each, which has its name: linear.py, dgpo.py, nft.py, ...

    group_loss(s, advantages, ...)        group.py: the loss of one group, in a loop of your own
    Terms -> Objective.loss -> scalar     terms.py: what an objective sees of one noise sample of a group

A new one is a file here with an `OBJECTIVE`, and its name in `Loss` of gpo_data/recipe/training.py. docs/objectives.md
has all equations in one notation.
"""
