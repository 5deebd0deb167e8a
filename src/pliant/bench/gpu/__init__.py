"""The campaign on a GPU: what is right, how fast it is, which launch settings are best, and what a training step costs.

`python -m pliant.bench.gpu` runs it. Each result is a line of a ledger, a file of JSON lines that lies in the
repository; a second call leaves out what the ledger already has for this GPU and these kernels.
"""
