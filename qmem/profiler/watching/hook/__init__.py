"""A folder that is put on ``PYTHONPATH``: Python runs its ``sitecustomize`` before a program."""
