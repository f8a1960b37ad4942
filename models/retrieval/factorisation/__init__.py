"""Liking as factors of users and items, learned from likes and dislikes. See README.md."""
