"""kdlib: what does a distilled student take over from its teacher?

`losses`, `probes` and `stats` are plain functions of tensors and arrays. `distill`, `models`, `data`, `train`,
`store` and `study` turn them into runs that are values: named by their content, computed once, read ever after.
"""

__version__ = "0.1.0"
