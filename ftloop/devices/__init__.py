"""Setups that make training faster or make it fit into memory. Each is one file.

matmul.py                  --matmul: which library multiplies fp32 matrices
matmul_probe.py            measures whether oneDNN multiplies faster than torch's default
matmul_settings.py         torch's settings for products of fp32 matrices
attention.py               eager attention, which is faster than SDPA if oneDNN multiplies
compile.py                 --compile: torch.compile, in place
gradient_checkpointing.py  --gradient-checkpointing: activations are computed again instead of
stored
keep_memory.py             --keep-memory: a process on a CPU keeps the memory that a step frees
deterministic.py           --deterministic: algorithms whose result does not depend on timing
micro_batch_size.py        --micro-batch-size auto: the most rows per forward pass that fit
fsdp.py                    FSDP2: each rank holds a shard of every weight
environment.py             recorded in checkpoints, compared when a run resumes
inference.py               which setups of a finished run also apply to evaluation and prediction
"""
