"""Our flags become Beam's options; what cannot work is refused before anything starts; every job's graph can be built anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import build_parser, main
from pipelines.context import Context
from pipelines.engine_options import JAR_ENV, EngineOptions
from pipelines.errors import UsageError
from pipelines.options import JOBS, MineOptions

CLOUD = {"project": "my-project-1", "region": "europe-west4", "worker_image": "host/sayagain:1"}
LAKE = "gs://bucket/lake"


@pytest.fixture(autouse=True)
def _bare(monkeypatch, tmp_path):
    """Nothing of the developer's own environment; a `java` that is there."""
    for name in (JAR_ENV, "SAYAGAIN_PRISM", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{java.parent}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("given", "lake", "words"),
    [
        ({"runner": "flink"}, "l", "--runner 'flink': should be one of local, prism"),
        ({"workers": 0}, "l", "--workers 0"),
        ({"runner": "prism", "workers": 2}, "l", "--workers 2 goes with --runner local; Prism has its workers"),
        ({"runner": "spark", "workers": 2}, "l", "Spark's master says"),
        ({"spark_master": "local[2]"}, "l", "--spark-master local[2] goes with --runner spark, and the runner is local"),
        ({"runner": "prism", "gpu": "nvidia-l4"}, "l", "--gpu nvidia-l4 goes with --runner dataflow"),
        ({"runner": "spark", **CLOUD}, "l", "--project my-project-1 goes with --runner dataflow"),
        ({"beam": ("x=1",)}, "l", "--beam=x=1: should be a whole option"),
        ({"beam": ("--runner=FlinkRunner",)}, "l", "say --runner"),
        ({"user_key_secret": "secret"}, "l", "projects/PROJECT/secrets"),
        ({"user_key_secret": "projects/p/secrets/s/versions/1"}, "l", "goes with --runner spark or dataflow"),
        ({"runner": "spark", "spark_master": "mesos://h"}, "l", "--spark-master mesos://h"),
        ({"runner": "spark", "spark_job_server": "/no.jar"}, "l", "--spark-job-server /no.jar: there is no such file"),
        ({"runner": "spark", "job_endpoint": "h:1", "spark_master": "local"}, "l", "leave --spark-master"),
        ({"runner": "spark", "job_endpoint": "host"}, "l", "--job-endpoint host: should be HOST:PORT"),
        ({"runner": "spark", "spark_master": "spark://h:7077"}, "s3://b/l", "--environment LOOPBACK"),
        ({"runner": "spark", "environment": "EXTERNAL"}, "l", "--environment-config (nothing): --environment EXTERNAL needs HOST:PORT"),
        ({"runner": "spark", "environment": "PROCESS", "environment_config": "boot"}, "l", "needs /path/to/boot"),
        ({"runner": "spark", "environment_config": "x"}, "l", "LOOPBACK takes none"),
        ({"runner": "spark", "environment": "DOCKER", "environment_config": "i:1"}, "lake", "--lake lake: containers"),
        (
            {"runner": "spark", "spark_master": "spark://h:1", "environment": "EXTERNAL", "environment_config": "h:1"},
            "lake",
            "do not see this folder",
        ),
        ({"runner": "dataflow"}, "s3://b/l", "such as gs://bucket/lake, not s3://b/l"),
        ({"runner": "dataflow"}, LAKE, "needs --project, --region, --worker-image"),
        ({"runner": "dataflow", **CLOUD, "region": "europe"}, LAKE, "--region europe: should look like europe-west4"),
        ({"runner": "dataflow", **CLOUD, "gpu": "nvidia-l4"}, LAKE, "--gpu and --gpu-image go together"),
        ({"runner": "dataflow", **CLOUD, "gpu": "L4 x", "gpu_image": "i"}, LAKE, "--gpu L4 x: should look like nvidia-l4"),
        ({"runner": "dataflow", **CLOUD, "worker_memory": "lots"}, LAKE, "--worker-memory lots"),
        ({"runner": "dataflow", **CLOUD, "worker_memory": "8GB"}, LAKE, "--worker-memory 8GB goes with --prime"),
        ({"runner": "dataflow", **CLOUD, "max_workers": -1}, LAKE, "--max-workers -1"),
    ],
)
def test_wrong_combinations_are_refused_with_the_value_and_the_fix(given, lake, words):
    with pytest.raises(UsageError) as raised:
        EngineOptions(**given).check_engine(lake)
    assert words in str(raised.value)


def test_a_missing_prism_java_or_jar_is_said_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.setenv("SAYAGAIN_PRISM", "/nowhere/prism")
    with pytest.raises(UsageError, match="SAYAGAIN_PRISM=/nowhere/prism"):
        EngineOptions(runner="prism").check_engine("l")
    monkeypatch.setenv(JAR_ENV, str(tmp_path / "no.jar"))
    with pytest.raises(UsageError, match=JAR_ENV):
        EngineOptions(runner="spark").check_engine("l")
    monkeypatch.delenv(JAR_ENV)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="no `java`"):
        EngineOptions(runner="spark").check_engine("l")


def test_logs_of_this_machine_are_refused_where_workers_are_elsewhere():
    EngineOptions().check_logs(("log.parquet",))
    EngineOptions(runner="spark").check_logs(("log.parquet",))
    for options in (EngineOptions(runner="dataflow"), EngineOptions(runner="spark", spark_master="spark://h:1")):
        options.check_logs(("gs://b/log",))
        with pytest.raises(UsageError, match=r"--logs log\.parquet: the workers"):
            options.check_logs(("log.parquet",))


def test_local_and_prism(monkeypatch, tmp_path):
    assert EngineOptions(workers=3).arguments("fit", "l")[1:] == ["--direct_num_workers=3", "--direct_running_mode=multi_processing"]
    assert EngineOptions(beam=("--x=1",)).arguments("fit", "l")[0::2][-1] in ("--x=1", "--direct_running_mode=multi_threading")
    assert EngineOptions(beam=("--x=1",)).arguments("fit", "l")[-1] == "--x=1"
    assert EngineOptions(runner="prism").arguments("fit", "l") == ["--runner=PrismRunner"]
    monkeypatch.setenv("SAYAGAIN_PRISM", str(tmp_path))
    assert EngineOptions(runner="prism").arguments("fit", "l")[1] == f"--prism_location={tmp_path}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    assert EngineOptions().arguments("fit", "l")[-1] == "--s3_endpoint_url=http://localhost:9000"


def test_spark(monkeypatch):
    assert EngineOptions(runner="spark").arguments("fit", "l") == [
        "--runner=SparkRunner",
        "--spark_master_url=local[*]",
        "--environment_type=LOOPBACK",
    ]
    monkeypatch.setenv(JAR_ENV, __file__)
    made = EngineOptions(runner="spark", spark_master="spark://h:7077", environment="EXTERNAL", environment_config="localhost:50000")
    made.check_engine("s3://b/lake")
    assert made.arguments("fit", "s3://b/lake") == [
        "--runner=SparkRunner",
        "--spark_master_url=spark://h:7077",
        f"--spark_job_server_jar={__file__}",
        "--environment_type=EXTERNAL",
        "--environment_options=external_service_address=localhost:50000",
    ]
    running = EngineOptions(runner="spark", job_endpoint="h:8099", environment="DOCKER", environment_config="i:1")
    assert running.arguments("fit", "s3://b/l")[:2] == ["--runner=PortableRunner", "--job_endpoint=h:8099"]


def test_dataflow_gives_a_gpu_to_embed_alone():
    gpu = EngineOptions(runner="dataflow", **CLOUD, gpu="nvidia-l4:2", gpu_image="host/cuda:1", max_workers=9)
    gpu.check_engine(LAKE)
    accelerator = "type:nvidia-l4;count:2;install-nvidia-driver"
    assert f"--dataflow_service_options=worker_accelerator={accelerator}" in gpu.arguments("embed", LAKE)
    assert "--sdk_container_image=host/cuda:1" in gpu.arguments("embed", LAKE)
    for job in set(JOBS) - {"embed"}:
        made = gpu.arguments(job, LAKE)
        assert not [a for a in made if "accelerator" in a or "cuda" in a], job
        assert {"--sdk_container_image=host/sayagain:1", "--max_num_workers=9", "--temp_location=gs://bucket/_beam/temp"} <= set(made)
    assert gpu.hints("embed") == {}
    fitted = EngineOptions(runner="dataflow", **CLOUD, gpu="nvidia-l4", gpu_image="i", prime=True)
    assert fitted.hints("detect") == {"min_ram": "4GB"}
    assert fitted.hints("embed") == {"min_ram": "4GB", "accelerator": "type:nvidia-l4;count:1;install-nvidia-driver"}
    assert not [a for a in fitted.arguments("embed", LAKE) if "worker_accelerator" in a]


def test_help_explains_every_option_under_its_engine():
    parser = build_parser("detect")
    shown = next(a for a in parser._subparsers._group_actions).choices["detect"].format_help()
    for heading in ("engine:", "engine: --runner spark:", "engine: --runner dataflow:"):
        assert heading in shown
    flags = EngineOptions.__dataclass_fields__.values()
    assert all(len(f.metadata["help"]) > 10 and "--" + f.name.replace("_", "-") in shown for f in flags if f.metadata)
    quiet = build_parser("explain")
    assert "--spark-master" not in next(a for a in quiet._subparsers._group_actions).choices["explain"].format_help()


# graphs: built without data, a lake or a cloud


@pytest.fixture(scope="module")
def graphs():
    from pipelines import graphs

    options = MineOptions(lake=LAKE, logs=("gs://b/l",), runner="dataflow", **CLOUD, gpu="nvidia-l4", gpu_image="host/cuda:1", prime=True)
    context = Context(options, dry=True)
    return {job: graphs.build(context, job, t) for job, t in graphs.transforms(context).items()}


@pytest.mark.slow
def test_every_job_has_a_graph(graphs):
    assert set(graphs) == {*JOBS, "choose"}
    assert [s for s in graphs["ingest"].stages if s.startswith("ingest/")] == ["ingest/read", "ingest/merge"]
    assert any("embed/encode" in s for s in graphs["embed"].stages)


@pytest.mark.slow
def test_keys_have_coders_that_every_runner_codes_the_same_way(graphs):
    standard = {"beam:coder:string_utf8:v1", "beam:coder:varint:v1", "beam:coder:bytes:v1"}  # or Beam's own deterministic one
    for job, graph in graphs.items():
        c = graph.proto.components
        for t in c.transforms.values():
            if t.spec.urn == "beam:transform:group_by_key:v1" and t.unique_name.startswith(f"{job}/") and "Reshuffle" not in t.unique_name:
                coder = c.coders[c.pcollections[next(iter(t.inputs.values()))].coder_id]
                key = c.coders[coder.component_coder_ids[0]].spec
                assert key.urn in standard or key.payload[:20].find(b"Deterministic") > 0, t.unique_name


@pytest.mark.slow
def test_only_embed_asks_for_a_gpu_and_every_worker_has_our_image(graphs):
    for job, graph in graphs.items():
        hints = {k for e in graph.proto.components.environments.values() for k in e.resource_hints}
        assert ("beam:resources:accelerator:v1" in hints) is (job == "embed")
        assert "beam:resources:min_ram_bytes:v1" in hints
        images = {e.payload for e in graph.proto.components.environments.values() if e.urn == "beam:env:docker:v1"}
        assert all((b"cuda" if job == "embed" else b"sayagain") in i for i in images), job


@pytest.mark.slow
def test_no_main_session_and_no_dofn_of_a_script(graphs):
    for graph in graphs.values():
        assert b"__main__" not in graph.proto.SerializeToString()


@pytest.mark.slow
def test_dry_run_on_dataflow_needs_no_cloud(capsys):
    argv = ["mine", f"--lake={LAKE}", "--logs=gs://b/l", "--runner=dataflow", "--dry-run"]
    assert main([*argv, *(f"--{k.replace('_', '-')}={v}" for k, v in CLOUD.items())]) == 0
    told = capsys.readouterr().out
    for part in ("--project=my-project-1", "ingest: ", "ingest/read", "release: ", "The lake was not looked at"):
        assert part in told


# a real Spark, where there is one


@pytest.mark.spark
@pytest.mark.slow
def test_spark_gives_the_same_bytes(spark_jar, tmp_path, monkeypatch):
    from running import contents, difference, run, simulate

    monkeypatch.setenv(JAR_ENV, spark_jar)
    monkeypatch.setenv("PATH", "/usr/bin:/bin:/usr/local/bin")
    log = simulate(tmp_path / "world", 4_000, 2)
    run("mine", f"--logs={log}", f"--lake={tmp_path}/local", "--quiet")
    run("mine", f"--logs={log}", f"--lake={tmp_path}/spark", "--quiet", "--runner=spark", "--spark-master=local[2]")
    assert not difference(contents(tmp_path / "local"), contents(tmp_path / "spark"))


def test_engine_options_import_nothing_heavy():
    code = "import sys, pipelines.options; sys.exit(bool({'apache_beam', 'polars', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parent.parent).returncode == 0
