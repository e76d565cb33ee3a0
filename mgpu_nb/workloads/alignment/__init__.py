r"""alignment: post-training of language models by rounds that generate data, train and evaluate.

Jobs are algorithms x model pairs x data sets x rounds. A round waits for its own chain's earlier round alone, a failed
job cancels what depends on it, and a run that was interrupted goes on where it was. ::

    from mgpu_nb.workloads import alignment

    run = alignment.start(alignment.Config(("experiment.name=first", "rounds_of_training=2")))
    report = alignment.collect(run.wait())
    report.save()

The same from a shell is ``mgpu-nb alignment experiment.name=first rounds_of_training=2``. Without other settings a
tiny GPT-2 that is shipped learns to write sums; ``profile=("embedded",)`` has settings by which it does so well.
Models and data of your own are settings, given as KEY=VALUE or in a YAML file (``config="mine.yaml"``)::

    experiment: {name: gsm8k}
    models:
      gpt2: null                                # not the shipped one
      llama: {reference: /models/Llama-3.2-3B, guide: /models/Llama-3.2-1B}
    datasets:
      sums: null
      gsm8k: {train: train.jsonl, test: test.jsonl}
    algos: {GRPO: {enabled: false}}

What goes in:

- Models: folders that save_pretrained of transformers has written, with config.json, weights as safetensors and
  tokenizer.json. Nothing is downloaded, unpickled, or run. The guide, a smaller model of the same tokens, is by default
  the reference once more; PITA, QSharp and GRPO-HF train one.
- Data: a .jsonl, .csv or .parquet file for ``train`` and one for ``test``, in UTF-8, a row an example. Columns that are
  not named here are left out; an empty or missing value is refused with file and line, and so is a prompt that with
  ``max_new_tokens`` more does not fit the context of a model.

  ``gsm8k``
      ``{"question": "What is 1 + 2?", "answer": "It is 3.\n#### 3"}``. The reward is 1.0 if a completion ends with the
      number behind ``####``, there behind ``####``, in a ``\boxed{}`` or as its last number, else 0.0.
  ``imdb``
      ``{"text": "A film that ...", "label": "1"}``. The prompt is the first ``prompt_words`` words; the reward is the
      probability of the positive class by ``reward_model``, the folder of a sequence classifier. QSharp then needs
      ``law: categorical``.
  ``table``
      ``{"question": "...", "answer": "..."}``, other names by ``question`` and ``answer`` (null for none). The reward
      is a function of yours, ``reward: "module:function"``: of examples (`Example`) and texts, n each, to n finite
      numbers.
  ``sums``
      The embedded task, without files.

What comes out, in the folder of the run, ``outputs/NAME/seed_42`` by default (KL is in nats per completion):

- ``results/summary.csv``: algo, family, dataset, round (0 of the reference), eta (empty without one), state,
  avg_reward, avg_reward_se, avg_kl, avg_kl_se, pass@1, pass@1_se, maj@k, maj@k_se, steps (of the optimiser), loss.
  ``_se`` is the standard error over test examples; k is ``evaluation.samples_per_example``.
- ``results/ALGO/FAMILY/DATASET/rN/result.json``: metrics, training, eval. The first has trained_steps, loss and figures
  as above at the eta that is nearest to that of the algorithm; the second what the training says of itself
  (completions, pairs, left_out, train_reward, train_kl, reward_model_loss); the third figures by eta, or ``none``.
- ``datasets/ALGO/DATASET_FAMILY_rN.csv``: question, answer, prompt, t (tokens of the roll-in that are kept), context
  (prompt and these), y_a, y_b (completions of it; y_b is empty if there is one), score_a, score_b (rewards), preferred
  (0 for y_a, 1 for y_b, -1 if there is one). `read_rows` reads it: cells that a spreadsheet would take for formulas
  have an apostrophe more.
- ``models/ALGO/DATASET_FAMILY_rN``: of DPO, GRPO and GRPO-HF a model folder that transformers loads; of PITA and QSharp
  config.json, value.safetensors and value.json (law, atoms, vocabulary), the value model that guides the reference.
- ``job_states.json``: NOT_STARTED, DATA_GENERATED, MODEL_TRAINED, EVAL_COMPLETED or FAILED of each job, by
  ``ALGO_FAMILY_DATASET_rN``.
- ``data.json``: file, examples, used, repeated (of those used, with the prompt of another). By data set and split.
- ``config.yaml``: all settings, which ``config`` takes again.
- ``run.log``: what became of each job, and peaks of memory.
- ``figures/``: reward_against_kl.png, reward_by_round.png, timeline.png, graph.png.
- What every run has: config.json (the options), journal.jsonl (each task and its record), metrics.jsonl (what tasks
  reported), samples.csv (memory and utilisation), summary_results.csv and detailed_results.json (a row a task), logs,
  and values (the samples of each chunk of data).

Settings that matter (all are in ``conf/config.yaml``, with what they mean): ``rounds_of_training``;
``data_collection.max_examples`` and ``samples_per_example``, on which the time of a round depends;
``generation.batch_size`` and ``training.micro_batch_size``, for which ``mgpu-nb alignment check`` finds the largest
that fit; ``algos.NAME.learning_rate`` and ``epochs``; ``evaluation.etas``, strengths at which one guide of PITA or
QSharp is evaluated; ``beta`` of DPO and GRPO, which holds the policy near the reference.

How to read the numbers: a policy is better that has more reward at the same KL. More reward alone may be bought by
leaving the reference: at 0 nats, or at ``eta`` 0, a policy is the reference. Policies are compared on the same test
examples and random numbers; what is less than two standard errors may be chance. On the embedded task no policy is
above `sums_frontier`, which `Report.plot` draws: its ``at(eta)`` is the point (kl, reward) with the highest
``reward - kl / eta``, its ``reward(kl)`` the highest reward at a divergence. pass@1 is the share of samples with a
reward of 0.5 or more; maj@k is the reward of the answer that most of k samples give.

From Python:

- `start` gives a `Run`; `collect` its `Report`: ``frame()`` as summary.csv and ``seconds``, ``plot()``,
  ``plot_rounds()``, ``plot_timelines()``, ``show()`` (completions side by side), ``save()``. `WORKLOAD` is what the
  command line runs.
- `Config`, and `CheckConfig` and `FitConfig` of the verbs check and fit (which made the shipped reference, `EMBEDDED`).
- `check_inputs` reads and checks all that a config names, and trains nothing; `tasks` are what a run would do.
  `load_settings` gives the `Settings`.
- `read_rows` and `read_states` read the files of a run. `Job`, `Pair`, `Example` and `Sample` are what tasks are about.
- `enumerate_policy` asks a policy for all completions of T tokens of a vocabulary of V: log-probabilities
  [P, (V - 1)**l, V] for l from 0 to T - 1, of P prompts.
- `device_memory` and `memory_lines` give the memory of devices, in bytes and as text; `largest_batches` the examples in
  the largest batches that fit, by family and what is tried.

``logging.getLogger("mgpu_nb.alignment")`` tells at INFO what was read and left out, at DEBUG what each task did;
``--log_level`` on the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from .config import Config
from .job import EMBEDDED, Example, Job, Pair, Sample

if TYPE_CHECKING:
    from .check import CheckConfig
    from .completions import enumerate_policy
    from .device_manager import device_memory, largest_batches, memory_lines
    from .exact import sums_frontier
    from .files import read_rows
    from .fit_reference import FitConfig
    from .inputs import check_inputs
    from .plan import tasks
    from .report import Report, collect
    from .settings import Settings, load_settings
    from .states import read_states
    from .workload import WORKLOAD, start

# Loaded on first use: the options alone need neither torch nor pandas.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "check": ["CheckConfig"],
        "device_manager": ["device_memory", "largest_batches", "memory_lines"],
        "exact": ["sums_frontier"],
        "files": ["read_rows"],
        "fit_reference": ["FitConfig"],
        "inputs": ["check_inputs"],
        "plan": ["tasks"],
        "report": ["Report", "collect"],
        "settings": ["Settings", "load_settings"],
        "states": ["read_states"],
        "completions": ["enumerate_policy"],
        "workload": ["WORKLOAD", "start"],
    },
)
__all__ = [
    "EMBEDDED",
    "WORKLOAD",
    "CheckConfig",
    "Config",
    "Example",
    "FitConfig",
    "Job",
    "Pair",
    "Report",
    "Sample",
    "Settings",
    "check_inputs",
    "collect",
    "device_memory",
    "enumerate_policy",
    "largest_batches",
    "load_settings",
    "memory_lines",
    "read_rows",
    "read_states",
    "start",
    "sums_frontier",
    "tasks",
]


def __dir__() -> list[str]:
    return sorted(__all__)
