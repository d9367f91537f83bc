"""No password, key or token is in an error, a log, a traceback or a file that a command writes."""

import logging
from io import StringIO
from pathlib import Path
from time import process_time

import pytest

from drfuse.cli import main
from drfuse.errors import InputError, reason_of
from drfuse.escapes import without_secrets
from drfuse.failures import traceback_of
from drfuse.logs import Terminal, handler_of
from drfuse.training.tune import tune

SECRETS = [
    "postgresql://jane:hunter2@db.example/mimic",
    "postgresql://jane:hun/hunter2@db.example/mimic",
    "postgresql://jane:my hunter2@db.example/mimic",
    "postgresql:/jane:hunter2@db.example/mimic",
    "postgresql:jane:hunter2@db.example/mimic",
    "jane:hunter2@db.example/mimic",
    "postgresql://db.example/mimic?user=jane&password=hunter2&sslmode=require",
    "postgresql://jane:hunter2@db.example:port/mimic",
    "postgres://jane:hunter2@",
    "host=db.example user=jane password=hunter2",
    "host=db.example user=jane password = 'my hunter2'",
    "mysql+pymysql://jane:hunter2@db.example/optuna",
    "redis://:hunter2@db.example:6379/0",
    "s3://KEY:hunter2@bucket/mimic",
    "s3a://KEY:ab/hunter2+c@bucket/mimic",
    "s3:/KEY:hunter2@bucket/mimic",
    "spark://local[1]/s3a://KEY:hunter2@bucket/mimic",
    "spark://host:7077/mimic?fs.s3a.secret.key=hunter2",
    "spark://host/abfss://c@a.example/?sv=2024&sig=hunter2&se=2030",
    "bigquery://p/d?access_token=hunter2",
    "duckdb:///tmp/x.db?aws_secret_access_key=hunter2",
    "duckdb://md:mimic?motherduck_token=hunter2",
    "https://x.example/y?X-Amz-Signature=hunter2",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=hunter2==;EndpointSuffix=x",
    "{'user': 'jane', 'password': 'hunter2'}",
    '{"user": "jane", "password": "a\\"hunter2"}',
    "postgresql://jane:p'hunter2@db.example/mimic",
    "jane:hunter2@127.0.0.1/mimic",
    "passphrase=hunter2",
    "password: hunter2",
    "Authorization: Bearer ab.hunter2",
]


@pytest.mark.slow
@pytest.mark.parametrize("address", SECRETS)
def test_no_command_says_a_password(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["prepare", "--mimic-iv", address, "--out", str(tmp_path / "cohort")],
        ["prepare", "--mimic-iv", address, "--out", str(tmp_path / "cohort"), "--debug"],
        ["tune", str(tmp_path), "--out", str(tmp_path / "out"), "--storage", address, "--trials", address],
        ["tune", str(tmp_path), "--out", str(tmp_path / "out"), "--storage", address],
    ):
        with pytest.raises(SystemExit):
            main(arguments)
    assert "hunter2" not in "".join(capsys.readouterr())
    assert not any(b"hunter2" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("address", SECRETS)
def test_no_error_and_no_log_says_a_password(address: str) -> None:
    error, screen = ValueError(f"could not parse {address}"), StringIO()
    handler = handler_of(Terminal(file=screen, width=500))
    for raised in (None, (ValueError, error, None)):
        handler.handle(logging.LogRecord("other", 40, "", 0, "connecting to %s", (address,), raised))
    said = [
        str(InputError(f"cannot open {address}")),
        traceback_of(error),
        reason_of(error),
        screen.getvalue(),
    ]
    assert "hunter2" not in "".join(said)
    assert "connecting to" in screen.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "write postgresql://user:password@host:port/database; in a password, write @, :, / and % as %40",
        "epochs=3, lr=0.1, n_tokens=5, design: 2; the password authentication failed",
        "/data/a:b/c@d/run: it has 3 files, see https://example.org/a?b=c",
        "spark://local[2]/mnt/mimic and postgresql://db.example:5433/mimic",
        "size mismatch for encoder.cls_token: copying a param with shape torch.Size([1, 1, 8])",
        "password: expected a string",
        "there is no class drfuse.models:Drfuse@2",
    ],
)
def test_what_is_not_secret_is_said(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize("part", ["a:", "a.", "a-key", "a@", "://", "password=", "'", "p10/p1/", "@:a"])
def test_a_long_word_is_not_a_hang(part: str) -> None:
    start = process_time()
    without_secrets(part * 20_000 + " @")
    assert process_time() - start < 5  # quadratic time would be minutes


@pytest.mark.slow
def test_a_database_of_studies_keeps_its_password(small_cohort: Path, tmp_path: Path) -> None:
    for address in (
        "nosuch://jane:hunter2@db/x",
        "postgresql://jane:hunter2@127.0.0.1:1/x",
        "sqlite://a:hunter2@/",
    ):
        with pytest.raises(InputError) as caught:
            tune(small_cohort, tmp_path / "out", sampler="tpe", storage=address, trials=1, crop_size=32)
        assert "hunter2" not in f"{caught.value}{traceback_of(caught.value)}"
    assert not any(b"hunter2" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
