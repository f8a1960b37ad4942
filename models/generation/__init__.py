"""Generation: context -> queries. What is typed under a video, written word by word.

Knows the query recommender (`onebar`). Does not know requests or Triton.
Importing this package imports no torch.
"""
