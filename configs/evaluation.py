"""The options of evaluation while training, `config.evaluation`: a line each."""

import ml_collections


def off() -> ml_collections.ConfigDict:
    options = ml_collections.ConfigDict()
    options.every = 0  # steps between two; 0 = never
    options.rows = 0  # of data that is held out, whose loss is measured; of a mixture it needs config.data.held_out
    options.benchmarks = ()  # names, as launch.evaluate has them
    options.root = ""  # folder of the benchmarks' files
    options.limit = 0  # questions of each; 0 = all
    options.best = ""  # keep the best checkpoint by held_out/loss or a benchmark; "" = none
    return options
