"""The configuration: every error at once, each with the value it got; and its printed form is itself valid."""

import pytest

from pipelines import config, flags
from pipelines.errors import UsageError


def test_the_printed_configuration_is_the_default(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(config.describe())
    assert config.load(str(path)) == config.Config()


def test_all_errors_are_reported_at_once():
    with pytest.raises(UsageError) as error:
        config.from_dict({"privacy": {"k": 0, "kk": 1}, "log": {"timestamp_unit": "h"}, "sessions": {"gap": "long"}, "nope": {}})
    message = str(error.value)
    for part in ("5 error(s)", "privacy.k = 0", "privacy.kk", "'h'", "sessions.gap = 'long'", "a string", "[nope]"):
        assert part in message


def test_a_whole_number_is_a_number_but_true_is_not():
    assert config.from_dict({"sessions": {"gap": 60}}).sessions.gap == 60.0
    with pytest.raises(UsageError, match="true or false"):
        config.from_dict({"privacy": {"k": True}})


def test_a_fingerprint_depends_on_what_it_names_alone():
    base, other = config.Config(), config.from_dict({"privacy": {"k": 5}})
    assert base.fingerprint("privacy") != other.fingerprint("privacy")
    assert base.fingerprint("log", "evidence.window") == other.fingerprint("log", "evidence.window")


@pytest.mark.parametrize(("text", "part"), [("a = [", "not valid TOML"), (None, "no such file")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text, part):
    path = tmp_path / "c.toml"
    if text:
        path.write_text(text)
    with pytest.raises(UsageError, match=part):
        config.load(str(path))


def test_every_option_of_every_job_can_be_given():
    import argparse

    from pipelines import options as o

    parser = argparse.ArgumentParser()
    flags.add_arguments(parser, o.MineOptions)
    argv = [
        "--logs",
        "a",
        "b",
        "--lake",
        "l",
        "--from",
        "2026-01-01",
        "--to",
        "2026-01-02",
        "--beam=--x=1",
        "--beam=--y",
        "--window",
        "all",
    ]
    made = flags.from_namespace(o.MineOptions, parser.parse_args(argv))
    assert made.logs == ("a", "b")
    assert made.beam == ("--x=1", "--y")
    assert (str(made.start), str(made.end), made.window) == ("2026-01-01", "2026-01-02", "all")
    again = flags.from_namespace(o.MineOptions, parser.parse_args(["--logs", "c", "--lake", "l"]))
    assert (again.logs, again.beam) == (("c",), ())


def test_wrong_options_name_what_they_got():
    from pipelines import options as o

    for made, part in (
        (o.MineOptions(logs=("x",)), "--lake is missing"),
        (o.MineOptions(lake="l"), "--logs is missing"),
        (o.MineOptions(lake="l", logs=("{date}.parquet",)), "{date} pattern needs"),
        (o.MineOptions(lake="l", logs=("x",), window="soon"), "'soon'"),
        (o.DetectOptions(lake="l", workers=0), "--workers 0"),
    ):
        with pytest.raises(UsageError, match=part.replace("{", "\\{")):
            made.validate()
