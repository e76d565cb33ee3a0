"""Three problems of your own, whole, each in a module of some thirty lines.

By their names from a shell, ``mgpu-nb training --preset plain --model mgpu_nb.workloads.training.examples.images:model
--data ...:data --loss ...:loss``, or as functions::

    from mgpu_nb.workloads import training
    from mgpu_nb.workloads.training.examples import images

    config = training.Config(model=images.model, data=images.data, loss=images.loss, metrics=images.metrics)
    report = training.collect(training.start(config).wait())
"""
