"""Generation: context -> queries. The query recommender, which writes queries word by word.

README.md is its model card. Does not know requests or Triton. Importing this package imports no
torch.
"""
