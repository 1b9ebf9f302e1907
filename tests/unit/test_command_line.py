import errno

import pytest

from sigrl_core import errors
from sigrl_core.cli import common as command_line
from sigrl_core.config import RunConfig
from sigrl_core.errors import ImageError, ShardError, StorageError

pytestmark = pytest.mark.unit


def status(error: BaseException | None) -> int:
    def command() -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as caught:
        command_line.run(command)
    return caught.value.code


def test_statuses(capsys) -> None:
    assert status(None) == 0
    assert status(ShardError("shards: 3 rows, expected 4;\n run again")) == 1
    assert capsys.readouterr().err == "error: shards: 3 rows, expected 4; run again\n"
    assert status(KeyboardInterrupt()) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command_line.run(lambda: 1 / 0)


def test_errors_from_other_processes_count_as_themselves() -> None:
    class CarrierError(StorageError):  # as Ray makes them: of the type of their load
        def __init__(self, cause: Exception) -> None:
            super().__init__("Traceback (most recent call last): ...")
            self.cause = cause

    assert errors.explain(CarrierError(StorageError("a: gone"))) == "a: gone"
    wrapped = RuntimeError("worker died")
    wrapped.__cause__ = CarrierError(ImageError("empty", "0 bytes"))
    assert errors.explain(wrapped) == "empty: 0 bytes"
    assert errors.explain(RuntimeError("worker died")) is None


def test_a_full_disk_anywhere_is_named() -> None:
    wrapped = RuntimeError("cannot save")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    assert errors.explain(wrapped) == "/data/x: disk full; free some space and run the same command again"


def test_configuration_is_printed_with_dotted_names(capsys) -> None:
    command_line.print_configuration(RunConfig())
    assert "optim.lr = 0.0001\n" in capsys.readouterr().out
