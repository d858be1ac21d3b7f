"""Every benchmark by name. To add one: a file like the others, and a line here and in `instructions.INSTRUCTIONS`."""

from trol_jax.evals.benchmarks import (
    ai2d,
    chartqa,
    easy_vqa,
    gqa,
    hallusionbench,
    llava,
    mathverse,
    mathvista,
    mm_vet,
    mmbench,
    mme,
    mmmu,
    mmstar,
    pope,
    qbench,
    seed,
    sqa,
    textvqa,
    visualwebbench,
    vizwiz,
    vqav2,
)
from trol_jax.evals.items import Benchmark

_SINGLE = (
    vqav2, gqa, sqa, vizwiz, pope, mme, mm_vet, mmmu, mathvista, ai2d, hallusionbench, chartqa, seed, llava,
    mmstar, mathverse, visualwebbench, easy_vqa,
)  # fmt: skip
BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        *(module.BENCHMARK for module in _SINGLE),
        *textvqa.BENCHMARKS,
        *mmbench.BENCHMARKS,
        *qbench.BENCHMARKS,
    )
}
