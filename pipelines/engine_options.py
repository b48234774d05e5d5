"""Which engine runs the Beam jobs, and how: our flags, what they may be together, and Beam's own options made of them.

Imports nothing heavy. A wrong combination is refused here, before anything starts; `arguments` is what Beam is given.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from pipelines.errors import UsageError
from pipelines.flags import flag, opt

RUNNERS = ("local", "prism", "spark", "dataflow")
ENVIRONMENTS = ("LOOPBACK", "DOCKER", "PROCESS", "EXTERNAL")
JAR_ENV = "BEAM_SPARK_JOB_SERVER_JAR"
PRISM_ENV = "SAYAGAIN_PRISM"
LOCAL_THREADS = 2
"""Of the one local process: most of a step is native code that lets another thread run; each more costs a shard's memory."""
GPU_JOBS = ("embed",)
"""Jobs with a neural network in their workers; the others would keep a GPU idle."""

_SPARK, _DATAFLOW = "engine: --runner spark", "engine: --runner dataflow"


@dataclass(frozen=True)
class EngineOptions:
    """How Beam runs a job. Every flag belongs to one runner, or to all."""

    RUNS_BEAM: ClassVar[bool] = True
    """Off where a command starts no Beam job: these flags are not offered then."""

    runner: str = opt(
        "local",
        "what runs the Beam jobs: this machine (local); Prism, Beam's portable runner (prism); a Spark or a Dataflow to be named below",
        choices=RUNNERS,
        group="engine",
    )
    workers: int = opt(1, "worker processes of --runner local; 1 is this process alone", kind=int, metavar="N", group="engine")
    beam: tuple[str, ...] = opt(
        (),
        "an option handed to Beam as it is, such as --beam=--job_name=NAME; may be repeated; wins over ours",
        metavar="ARG",
        many=True,
        group="engine",
    )
    user_key_secret: str = opt(
        "",
        "where workers find the lake's key when their environment has no SAYAGAIN_USER_KEY: projects/P/secrets/S/versions/V of Google's "
        "Secret Manager",
        metavar="NAME",
        group="engine",
    )

    spark_master: str = opt(
        "", "the cluster, such as spark://host:7077; default: a Spark inside the job server, local[*]", metavar="URL", group=_SPARK
    )
    spark_job_server: str = opt(
        "", f"Beam's Spark 3 job server; default: {JAR_ENV}, else Beam gets it from Maven Central", metavar="JAR", group=_SPARK
    )
    job_endpoint: str = opt("", "a job server that runs already, instead of a jar", metavar="HOST:PORT", group=_SPARK)
    environment: str = opt(
        "",
        "where our Python runs: in this process (LOOPBACK, the default on one machine), in a container that Spark's workers start (DOCKER), "
        "by Beam's boot program on them (PROCESS), or in worker pools that run beside them (EXTERNAL, usual on Kubernetes)",
        choices=ENVIRONMENTS,
        group=_SPARK,
    )
    environment_config: str = opt(
        "", "the image of DOCKER, the program of PROCESS, the host:port of EXTERNAL", metavar="TEXT", group=_SPARK
    )

    project: str = opt("", "Google Cloud project that pays", metavar="ID", group=_DATAFLOW)
    region: str = opt("", "where workers run, such as europe-west4; the lake's bucket should be there", metavar="NAME", group=_DATAFLOW)
    temp_location: str = opt(
        "", "gs:// folder for Dataflow's own files; default: _beam in the lake's bucket", metavar="URL", group=_DATAFLOW
    )
    worker_image: str = opt("", "container image with this sayagain (infra/Dockerfile, target cpu)", metavar="IMAGE", group=_DATAFLOW)
    max_workers: int = opt(0, "workers that autoscaling may start; 0: Dataflow's own limit", kind=int, metavar="N", group=_DATAFLOW)
    machine_type: str = opt("", "of a worker, such as n2-standard-4; default: Dataflow's choice", metavar="TYPE", group=_DATAFLOW)
    service_account: str = opt("", "that workers run as; it needs the lake and the key's secret", metavar="EMAIL", group=_DATAFLOW)
    worker_memory: str = opt(
        "4GB",
        "with --prime: least memory of a worker, as a hint for right fitting; a stage of a million turns peaks at 2.5 GiB",
        metavar="SIZE",
        group=_DATAFLOW,
    )
    prime: bool = opt(False, "Dataflow Prime: workers are fitted to each stage by hints", group=_DATAFLOW)
    gpu: str = opt(
        "", "GPU of the workers of `embed` (no other job gets one), such as nvidia-l4 or nvidia-l4:2", metavar="TYPE[:N]", group=_DATAFLOW
    )
    gpu_image: str = opt("", "container image for them (infra/Dockerfile, target cuda)", metavar="IMAGE", group=_DATAFLOW)

    @property
    def processes(self) -> bool:
        """Whether a worker may be several processes."""
        return self.runner != "local" or self.workers > 1

    def check_engine(self, lake: str) -> None:
        """Raises UsageError for what cannot work, with the value and the fix."""
        if self.runner not in RUNNERS:
            raise UsageError(f"--runner {self.runner!r}: should be one of {', '.join(RUNNERS)}")
        if self.workers < 1:
            raise UsageError(f"--workers {self.workers}: should be 1 or more")
        if self.workers > 1 and self.runner != "local":
            raise UsageError(f"--workers {self.workers} goes with --runner local; {_SCALE[self.runner]}")
        for f in fields(EngineOptions):
            of = {_SPARK: "spark", _DATAFLOW: "dataflow"}.get(f.metadata["group"])
            if of and of != self.runner and getattr(self, f.name) != f.default:
                raise UsageError(
                    f"{flag(f)} {getattr(self, f.name)} goes with --runner {of}, and the runner is {self.runner}: leave it away"
                )
        for text in self.beam:
            if not text.startswith("--"):
                raise UsageError(f"--beam={text}: should be a whole option of Beam, such as --beam=--job_name=NAME")
            if text.split("=")[0] == "--runner":
                raise UsageError(f"--beam={text}: say --runner, one of {', '.join(RUNNERS)}")
        if self.user_key_secret and not re.fullmatch(r"projects/[^/]+/secrets/[^/]+/versions/[^/]+", self.user_key_secret):
            raise UsageError(f"--user-key-secret {self.user_key_secret}: should be projects/PROJECT/secrets/SECRET/versions/VERSION")
        if self.user_key_secret and self.runner in ("local", "prism"):
            raise UsageError(
                f"--user-key-secret {self.user_key_secret} goes with --runner spark or dataflow; workers of --runner {self.runner} are given the "
                "key of this process: leave it away, and set SAYAGAIN_USER_KEY"
            )
        if self.runner == "prism" and (path := os.environ.get(PRISM_ENV)) and not Path(path).is_file():
            raise UsageError(f"{PRISM_ENV}={path}: there is no such file; name Beam's prism, or unset it: Beam then downloads it")
        if self.runner == "spark":
            self._check_spark(lake)
        if self.runner == "dataflow":
            self._check_dataflow(lake)

    def _check_spark(self, lake: str) -> None:
        if self.job_endpoint and (self.spark_master or self.spark_job_server):
            raise UsageError("--job-endpoint is a job server with a master of its own: leave --spark-master and --spark-job-server away")
        if self.job_endpoint and not re.fullmatch(r"[^:/\s]+:\d+", self.job_endpoint):
            raise UsageError(f"--job-endpoint {self.job_endpoint}: should be HOST:PORT")
        if self.spark_master and not re.match(r"(local(\[.*\])?$|spark://|k8s://|yarn$)", self.spark_master):
            raise UsageError(f"--spark-master {self.spark_master}: should be spark://host:7077, k8s://..., yarn or local[N]")
        if not self.job_endpoint:
            jar = self.spark_jar
            if jar and not Path(jar).is_file():
                where = "--spark-job-server" if self.spark_job_server else JAR_ENV
                raise UsageError(
                    f"{where} {jar}: there is no such file; Maven Central has it as org.apache.beam:beam-runners-spark-3-job-server"
                )
            if not shutil.which("java"):
                raise UsageError("--runner spark: its job server needs Java, and there is no `java` on the PATH; install a JRE (11 or 17)")
        environment, config = self.spark_environment, self.environment_config
        if environment == "LOOPBACK" and not self.on_one_machine:
            raise UsageError(
                f"--environment LOOPBACK runs Python in this process, which workers of {self.spark_master} do not reach; "
                "take EXTERNAL (worker pools beside them), DOCKER or PROCESS"
            )
        wanted = {"DOCKER": (r"\S+", "IMAGE"), "PROCESS": (r"/\S+", "/path/to/boot"), "EXTERNAL": (r"[^:/\s]+:\d+", "HOST:PORT")}
        if environment not in wanted and config:
            raise UsageError(f"--environment-config {config}: {environment} takes none; leave it away, or name another --environment")
        if environment in wanted and not re.fullmatch(wanted[environment][0], config):
            given = config or "(nothing)"
            raise UsageError(f"--environment-config {given}: --environment {environment} needs {wanted[environment][1]}")
        if environment == "DOCKER" and "://" not in lake:
            raise UsageError(
                f"--lake {lake}: containers of --environment DOCKER do not see this folder; name s3://bucket/lake or gs://bucket/lake"
            )
        if not self.on_one_machine and "://" not in lake:
            raise UsageError(
                f"--lake {lake}: the workers of {self.spark_master} do not see this folder; name s3://bucket/lake or gs://bucket/lake"
            )

    def _check_dataflow(self, lake: str) -> None:
        if not lake.startswith("gs://"):
            raise UsageError(f"--runner dataflow needs a lake that its workers can reach, such as gs://bucket/lake, not {lake}")
        missing = [n for n in ("project", "region", "worker_image") if not getattr(self, n)]
        if missing:
            raise UsageError(
                f"--runner dataflow needs {', '.join('--' + n.replace('_', '-') for n in missing)}; sayagain COMMAND --help says what each is"
            )
        for name, pattern, like in (
            ("project", r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]", "my-project-1"),
            ("region", r"[a-z]+-[a-z]+\d+", "europe-west4"),
            ("worker_memory", r"\d+(\.\d+)?[KMGT]i?B", "4GB"),
            ("temp_location", r"(gs://[^/]+(/.*)?)?", "gs://bucket/tmp"),
            ("gpu", r"([a-z0-9-]+(:\d+)?)?", "nvidia-l4"),
        ):
            if not re.fullmatch(pattern, getattr(self, name)):
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: should look like {like}")
        if bool(self.gpu) != bool(self.gpu_image):
            raise UsageError(
                "--gpu and --gpu-image go together: workers with a GPU need an image with CUDA (infra/Dockerfile, target cuda)"
            )
        if self.worker_memory != EngineOptions.worker_memory and not self.prime:
            raise UsageError(
                f"--worker-memory {self.worker_memory} goes with --prime, which fits workers by it; name --prime too, or a --machine-type"
            )
        if self.max_workers < 0:
            raise UsageError(f"--max-workers {self.max_workers}: should be 1 or more, or 0 for Dataflow's own limit")

    def check_logs(self, logs: tuple[str, ...]) -> None:
        """Raises UsageError where workers on other machines are to read this machine's files."""
        here = self.runner == "spark" and self.on_one_machine and self.spark_environment != "DOCKER"
        if here or self.runner in ("local", "prism"):
            return
        for path in logs:
            if "://" not in path:
                raise UsageError(f"--logs {path}: the workers of --runner {self.runner} do not see this path; name gs:// or s3://")

    @property
    def spark_jar(self) -> str:
        """The job server: the flag's, else the environment's; "": Beam's own choice."""
        return self.spark_job_server or os.environ.get(JAR_ENV, "")

    @property
    def on_one_machine(self) -> bool:
        """No worker elsewhere, as far as the flags say."""
        return not self.job_endpoint and (not self.spark_master or self.spark_master.startswith("local"))

    @property
    def spark_environment(self) -> str:
        """LOOPBACK on one machine unless another is named."""
        return self.environment or "LOOPBACK"

    def arguments(self, job: str, lake: str) -> list[str]:
        """Beam's own options for one job, the user's last so that they win."""
        made = {"local": self._local, "prism": self._prism, "spark": self._spark, "dataflow": self._dataflow}[self.runner](job, lake)
        if endpoint := os.environ.get("AWS_ENDPOINT_URL"):  # what the lake's store goes by, for logs too
            made.append(f"--s3_endpoint_url={endpoint}")
        return [*made, *self.beam]

    def _local(self, job: str, lake: str) -> list[str]:
        args = ["--runner=FnApiRunner"]  # DirectRunner would try to download Prism first
        threads = min(LOCAL_THREADS, os.cpu_count() or 1)
        if self.workers > 1:
            return [*args, f"--direct_num_workers={self.workers}", "--direct_running_mode=multi_processing"]
        return [*args, f"--direct_num_workers={threads}", "--direct_running_mode=multi_threading"] if threads > 1 else args

    def _prism(self, job: str, lake: str) -> list[str]:
        path = os.environ.get(PRISM_ENV)
        return ["--runner=PrismRunner", *([f"--prism_location={path}"] if path else [])]

    def _spark(self, job: str, lake: str) -> list[str]:
        args = ["--runner=PortableRunner", f"--job_endpoint={self.job_endpoint}"] if self.job_endpoint else ["--runner=SparkRunner"]
        if not self.job_endpoint:
            args += [f"--spark_master_url={self.spark_master or 'local[*]'}"]
            args += [f"--spark_job_server_jar={self.spark_jar}"] if self.spark_jar else []
        environment, config = self.spark_environment, self.environment_config
        name = {"DOCKER": "docker_container_image", "PROCESS": "process_command", "EXTERNAL": "external_service_address"}.get(environment)
        return [*args, f"--environment_type={environment}", *([f"--environment_options={name}={config}"] if name else [])]

    def _dataflow(self, job: str, lake: str) -> list[str]:
        temp = self.temp_location or f"gs://{lake.removeprefix('gs://').split('/')[0]}/_beam"
        gpu = self.gpu if job in GPU_JOBS else ""
        args = [
            "--runner=DataflowRunner",
            f"--project={self.project}",
            f"--region={self.region}",
            f"--job_name=sayagain-{job.replace('_', '-')}",
        ]
        args += [f"--temp_location={temp}/temp", f"--staging_location={temp}/staging"]
        args += [f"--sdk_container_image={self.gpu_image if gpu else self.worker_image}", "--sdk_location=container"]
        args += ["--autoscaling_algorithm=THROUGHPUT_BASED"]
        args += [f"--max_num_workers={self.max_workers}"] if self.max_workers else []
        args += [f"--worker_machine_type={self.machine_type}"] if self.machine_type else []
        args += [f"--service_account_email={self.service_account}"] if self.service_account else []
        args += ["--dataflow_service_options=enable_prime"] if self.prime else []
        if gpu:
            # one process per worker, so that one copy of the model is on the GPU
            args += ["--experiments=no_use_multiple_sdk_containers"]
            args += [] if self.prime else [f"--dataflow_service_options=worker_accelerator={accelerator(gpu)}"]
        return args

    def hints(self, job: str) -> dict[str, str]:
        """Resource hints of the job's transform: what Dataflow Prime fits workers by; elsewhere none, as they split stages."""
        if self.runner != "dataflow" or not self.prime:
            return {}
        gpu = {"accelerator": accelerator(self.gpu)} if self.gpu and job in GPU_JOBS else {}
        return {"min_ram": self.worker_memory, **gpu}


def accelerator(gpu: str) -> str:
    """`nvidia-l4:2` as Dataflow writes it."""
    kind, _, count = gpu.partition(":")
    return f"type:{kind};count:{count or 1};install-nvidia-driver"


_SCALE = {
    "prism": "Prism has its workers in this process",
    "spark": "Spark's master says how many there are",
    "dataflow": "Dataflow scales by itself, up to --max-workers",
}
