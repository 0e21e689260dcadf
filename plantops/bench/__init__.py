"""What measures plantops: a harness, the benchmarks of the ops, their tables and plots.

``plantops bench`` and the scripts under ``benchmarks/`` are thin ways in; ``registry.py`` lists the benchmarks.
"""
