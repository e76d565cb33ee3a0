"""Settings from YAML, profiles and overrides; what is said of those that are invalid."""

import dataclasses
import json
import pickle
import re
from pathlib import Path

import pytest

from mgpu_nb.workloads.alignment.config import Config
from mgpu_nb.workloads.alignment.layers import CONF
from mgpu_nb.workloads.alignment.settings import (
    SCHEMA,
    DataCollection,
    Gsm8kData,
    Settings,
    ValueGuided,
    from_plain,
    load_settings,
)


def load(*overrides: str, **options: object) -> Settings:
    return load_settings(Config(overrides=overrides, **options))  # type: ignore[arg-type]


def refused(*overrides: str, **options: object) -> str:
    with pytest.raises((ValueError, TypeError)) as caught:
        load(*overrides, **options)
    return str(caught.value)


def test_defaults_are_those_of_the_guide() -> None:
    settings = load()
    assert settings.rounds_of_training == 2
    assert settings.generation.temperature == 0.8
    assert settings.generation.top_p == 0.9
    assert settings.generation.batch_size == 8
    assert settings.training.micro_batch_size == 4
    assert settings.training.gradient_checkpointing
    assert settings.data_collection == DataCollection()
    assert settings.system.attn_impl == "eager"
    assert settings.system.clear_cache_interval == 10
    assert settings.system.use_parallel_execution
    assert list(settings.algos) == ["PITA", "QSharp", "DPO", "GRPO", "GRPO-HF"]
    assert list(settings.models) == ["gpt2"]
    assert list(settings.datasets) == ["sums"]


def test_defaults_of_the_classes_are_those_of_the_file() -> None:
    settings = load()
    parts = [settings.experiment, settings.system, settings.generation, settings.training]
    for part in [*parts, settings.data_collection, settings.evaluation, *settings.algos.values()]:
        for each in dataclasses.fields(part):
            if each.default is not dataclasses.MISSING:
                assert getattr(part, each.name) == each.default, each.name


def test_every_key_is_in_the_file() -> None:
    text = (CONF / "config.yaml").read_text()
    for key in SCHEMA.keys():  # noqa: SIM118
        if key.startswith(("models.", "datasets.")):
            continue
        assert re.search(rf"^\s*{key.rpartition('.')[2]}:", text, re.M), key


def test_overrides_reach_the_settings() -> None:
    settings = load(
        "experiment.name=007",
        "rounds_of_training=3",
        "algos.PITA.batch_size=16",
        "algos.DPO.enabled=false",
        "algos.GRPO=null",
        "models.gpt2=null",
        "models.llama.reference=/large",
        "models.llama.guide=/small",
        "models.phi3.reference=/phi",
        "evaluation.etas=[1,3,8.5]",
        "data_collection.max_examples=null",
        "datasets.gsm8k.train=a.jsonl",
        "datasets.gsm8k.test=b.jsonl",
        "datasets.gsm8k.prompt=Q: {question}\nA:",
        "datasets.sums.enabled=false",
        "system.by_round=true",
        "algos.QSharp.learning_rate=3e-4",
    )
    assert settings.experiment.name == "007"
    assert settings.rounds_of_training == 3
    assert settings.algos["PITA"].batch_size == 16
    assert list(settings.algos) == ["PITA", "QSharp", "GRPO-HF"]
    assert settings.models["llama"].guide == "/small"
    assert settings.models["phi3"].guide == "/phi"
    assert list(settings.models) == ["llama", "phi3"]
    assert settings.evaluation.etas == (1, 3, 8.5)
    assert settings.algos["QSharp"].learning_rate == 3e-4
    assert settings.system.by_round
    (data,) = settings.datasets.values()
    assert isinstance(data, Gsm8kData)
    assert data.prompt == "Q: {question}\nA:"
    assert settings.generation_for("gsm8k").max_new_tokens == 256
    assert settings.generation.max_new_tokens == 4


def test_a_later_source_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_MODELS", "/models")
    file = tmp_path / "mine.yaml"
    file.write_text(
        "training: {micro_batch_size: 8}\n"
        "rounds_of_training: ???\n"
        "models:\n  gpt2: null\n  llama: {reference: '${oc.env:MY_MODELS}/llama'}\n"
        "algos: {PITA: {epochs: '${algos.QSharp.epochs}'}}\n"
    )
    settings = load("rounds_of_training=5", profile=("40gb", "8gpus"), config=str(file))
    assert settings.training.micro_batch_size == 8
    assert settings.rounds_of_training == 5
    assert settings.algos["PITA"].batch_size == 16
    assert settings.data_collection.examples_per_task == 8
    assert settings.models["llama"].reference == "/models/llama"
    assert settings.algos["PITA"].epochs == settings.algos["QSharp"].epochs
    assert refused(config=str(file)).startswith(f"rounds_of_training is missing, ??? (in {file}, line 2)")


@pytest.mark.parametrize("profile", ["40gb", "80gb", "2gpus", "8gpus", "embedded"])
def test_profiles_are_the_files_that_there_are(profile: str) -> None:
    assert (CONF / "profiles" / f"{profile}.yaml").is_file()
    assert load(profile=(profile,)) != load()
    assert len(list((CONF / "profiles").iterdir())) == 5


def test_profiles_have_the_numbers_of_the_guide() -> None:
    small, large = load(profile="40gb"), load(profile="80gb")
    assert (small.algos["PITA"].batch_size, large.algos["PITA"].batch_size) == (16, 32)
    assert (small.training.micro_batch_size, large.training.micro_batch_size) == (2, 4)
    assert (small.training.gradient_checkpointing, large.training.gradient_checkpointing) == (True, False)


def test_settings_go_through_json_and_pickle() -> None:
    settings = load("models.llama.reference=/x", "evaluation.etas=[0, 1]")
    assert from_plain(json.loads(json.dumps(settings.plain()))) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert isinstance(settings.algos["PITA"], ValueGuided)


REFUSED = [
    ("experiment.nam=x", "experiment.nam; did you mean experiment.name?"),
    ("experimnt.name=x", "did you mean experiment.name?"),
    ("algos.PITAA.enabled=true", "did you mean algos.PITA.enabled?"),
    ("algos.pita.enabled=true", "did you mean algos.PITA.enabled?"),
    ("algos.Q#.enabled=true", "algos has PITA, QSharp, DPO, GRPO, GRPO-HF"),
    ("algos.PITA.batchsize=3", "did you mean algos.PITA.batch_size?"),
    ("top_p=.3", "did you mean generation.top_p or evaluation.top_p?"),
    ("models.lama.reference=/x", "did you mean models.llama?"),
    ("models.mine.enabled=true", "gemma, phi. For one of your own give models.mine.reference"),
    ("datasets.gsm8.train=x", "did you mean datasets.gsm8k?"),
    ("datasets.my={kind: tabel}", "datasets.my.kind must be one of sums, gsm8k, imdb, table, got 'tabel'"),
    ("datasets.sums.prompt_words=3", "datasets.sums has no setting prompt_words"),
    ("num_samples=3", "data_collection.examples_per_task"),
    ("seed=3", "give seed=1"),
    ("rounds_of_training=0", "rounds_of_training must be an integer >= 1, got 0"),
    ("rounds_of_training=two", "got 'two'"),
    ("rounds_of_training=1.5", "got 1.5"),
    ("rounds_of_training=true", "got True"),
    ("evaluation.etas=[1,-1]", "evaluation.etas[1] must be a finite number >= 0, got -1"),
    ("evaluation.etas=[]", "non-empty"),
    ("algos.PITA.eta=-1", "algos.PITA.eta must be a finite number >= 0, got -1"),
    ("generation.top_p=0", "generation.top_p must be a number > 0 and <= 1, got 0"),
    ("generation.top_p=1.1", "got 1.1"),
    ("generation.temperature=0", "generation.temperature must be a finite number > 0, got 0"),
    ("generation.temperature=.nan", "generation.temperature"),
    ("training.micro_batch_size=48", "must divide algos.PITA.batch_size, 24, got 48: give 24"),
    ("training.micro_batch_size=5", "give 4 or 6"),
    ("experiment.name=../up", "experiment.name must be a name"),
    ("experiment.name=[a]", "experiment.name must be a name"),
    ("models.a/b.reference=/x", "a name in models must be a name"),
    ("models.gpt2=null", "models has none that is enabled"),
    ("datasets.sums.enabled=false", "datasets has none that is enabled"),
    ("algos=null", "algos must be a mapping"),
    ("algos.PITA=3", "algos.PITA must be a mapping"),
    ("generation=null", "generation must be a mapping"),
    ("models.llama.guide=/x", "models.llama.reference is missing"),
    ("models.llama.enabled=true", "models.llama.reference is missing"),
    ("datasets.gsm8k.train=x", "datasets.gsm8k.test is missing"),
    ("datasets.imdb.enabled=true", "datasets.imdb.train is missing"),
    ("experiment.name.x=3", "experiment.name is a value"),
    ("experiment.name=${oc.env:MGPU_NB_NOT_THERE}", "experiment.name: "),
    ("rounds_of_training=${nowhere}", "rounds_of_training: Interpolation key 'nowhere' not found"),
    ("rounds_of_training=${rounds_of_training}", "rounds_of_training: "),
    ("rounds_of_training=[1", "no valid YAML"),
    ("rounds_of_training=3\nseed: 4", "no valid YAML: it has more than one"),
    ("rounds_of_training=!!python/name:os.system", "no valid YAML"),
    ("rounds_of_training=", "has no value: give rounds_of_training=VALUE"),
    ("rounds_of_trainin", "is no setting: give rounds_of_training=VALUE"),
    ("word", "'word' is no setting: give KEY=VALUE"),
    ("+algos.PITA.eta=3", "without the +"),
    ("evaluation.etas[0]=3", "of a list give all of it"),
    ("algos..eta=3", "names with dots between them"),
    ("algos.PITA.law=categorical", "algos.QSharp.law may be"),
    ("datasets.imdb={train: a.csv, test: b.csv, reward_model: /r}", "give algos.QSharp.law=categorical"),
    ("system.attn_impl=flash", "system.attn_impl must be one of eager, sdpa, flash_attention_2"),
]  # fmt: skip


def test_an_invalid_override_is_refused() -> None:
    told = [(override, words, refused(override)) for override, words in REFUSED]
    assert [case for case in told if case[1] not in case[2]] == []


def test_no_algorithm_is_refused() -> None:
    words = [f"algos.{name}.enabled=false" for name in load().algos]
    assert refused(*words) == "algos has none that is enabled: give algos.PITA.enabled=true, say"


def test_names_that_would_share_a_file_or_a_job_are_refused() -> None:
    table = "{kind: table, train: t, test: t, reward: 'm:f'}"
    files = "models.c.reference=/x", "models.b_c.reference=/x", f"datasets.a={table}", f"datasets.a_b={table}"
    assert "have the name a_b_c: rename one" in refused(*files)
    jobs = "models.a.reference=/x", "models.a_b.reference=/x", f"datasets.b_c={table}", f"datasets.c={table}"
    assert "have the name a_b_c: rename one" in refused(*jobs)
    assert "have the name sums_gpt20: rename one" in refused(
        "models.gpt20.reference=/x", "models.GPT20.reference=/x"
    )


@pytest.mark.parametrize(
    "prompt",
    ["Q: {question}\nA:", "{question} # 1", "7{question}", "{question}", "a\nb: {question}", "- {question}"],
)
def test_a_text_is_taken_as_it_is(prompt: str) -> None:
    for text in (prompt, json.dumps(prompt)):
        settings = load("datasets.gsm8k.train=a", "datasets.gsm8k.test=b", f"datasets.gsm8k.prompt={text}")
        data = settings.datasets["gsm8k"]
        assert isinstance(data, Gsm8kData)
        assert data.prompt == prompt


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\nb: 2", ", line 2: no valid YAML"),
        ("rounds_of_training: 2\nrounds_of_training: 3", ", line 2: no valid YAML: found duplicate key"),
        ("generation: {temprature: 3}", "generation.temprature (in {file}, line 1); did you mean generation.temp"),
        ("generation: {temperature: -3}", "generation.temperature must be a finite number > 0, got -3 (in {file}, l"),
        (
            "generation:\n  batch_size: 3\n  temperature: -3",
            "generation.temperature must be a finite number > 0, got -3 (in {file}, line 3)",
        ),
        (
            "experiment:\n  name: ${nowhere}",
            "experiment.name: Interpolation key 'nowhere' not found (in {file}, line 2)",
        ),
        ('"\\e[31mrounds": 1', "there is no setting rounds (in {file}, line 1)"),
        ("models: {lama: {reference: x}}", "there is no models.lama (in {file}, line 1); did you mean models.llama?"),
        ("evaluation: {etas: null}", "evaluation.etas is missing (in {file}, line 1): it must be a non-empty sequence"),
        ("generation.temperature: 3", "write a mapping in a mapping"),
        ("1: 2", "a key of the settings must be a name, got 1"),
        ("- 1", "must hold a mapping of settings, not a list; write KEY: VALUE in each line"),
        ("3", "holds no settings"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: no valid YAML"),
        ("experiment: {name: !!set {b}}", "holds no settings"),
        ("rounds_of_training: {a: 1}", "rounds_of_training is a value"),
        ("rounds_of_training: {}", "rounds_of_training must be an integer >= 1, got a mapping (in {file}, line 1)"),
    ],
)  # fmt: skip
def test_an_invalid_file_is_refused(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    found = refused(config=str(file))
    assert words.replace("{file}", str(file)) in found
    assert str(file) in found


def test_a_file_must_be_there_and_text(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"config='.*none.yaml' cannot be read, No such file.*: give the path"
    ):
        load(config=str(tmp_path / "none.yaml"))
    with pytest.raises(
        IsADirectoryError, match="cannot be read, Is a directory: give the path of a YAML file"
    ):
        load(config=str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes("b: 1\na: ä".encode("latin-1"))
    assert "latin.yaml, line 2: it is not text in UTF-8" in refused(config=str(tmp_path / "latin.yaml"))
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load(config=str(tmp_path / "empty.yaml")) == load()


def test_an_algorithm_that_this_version_lacks_is_named_when_the_settings_of_a_run_are_read() -> None:
    plain = load().plain()
    with pytest.raises(ValueError, match=r"a name in algos must be one of PITA, .* got 'PITO'"):
        from_plain({**plain, "algos": {"PITO": plain["algos"]["PITA"]}})


def test_an_unknown_key_is_refused_when_the_config_is_made() -> None:
    with pytest.raises(ValueError, match=r"did you mean experiment\.name"):
        Config(overrides=("experiment.nam=x",))
