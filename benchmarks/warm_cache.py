"""Compiles the peers of every GPU case, and ours by Triton, in parallel, into caches on disk.

    python benchmarks/warm_cache.py

One after the other they would take longer than all measurements together.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import cases
import inputs
import peers
from bench_cosine import loss
from comparison import by_backend
from logo_kernels import block_cosine_similarity

PROCESSES = 6  # each with its own CUDA context and the tensors of one case


def warm(case: cases.CosineCase | cases.SimilarityCase) -> str:
    """One step of whatever is compiled; errors are for the benchmark itself to report."""
    upstream = None
    if isinstance(case, cases.CosineCase):
        crops, ours, functions = inputs.cosine_inputs(case, "cuda"), loss, peers.COSINE
    else:
        crops, upstream = inputs.similarity_inputs(case, "cuda")
        ours, functions = block_cosine_similarity, peers.SIMILARITY
    compiled = list(by_backend(ours, case.operation, "cuda", crops).values())
    for peer in peers.prepare(functions, "cuda", case.moved_bytes()):
        if "compiled" in peer.name:
            compiled.append(peer.function)
    failed = 0
    for function in compiled:
        try:
            crops.step(function, upstream)
        except Exception:
            failed += 1
    return f"{case.id}: {failed} failed" if failed else case.id


if __name__ == "__main__":
    chosen = [*cases.COSINE["cuda"], *cases.SIMILARITY["cuda"], *cases.OVERHEAD["cuda"]]
    processes = min(PROCESSES, os.cpu_count() or 1)
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        for done in pool.map(warm, chosen):
            print(done, flush=True)
