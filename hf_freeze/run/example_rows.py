"""Real rows to compare an exported model on: those of the run's own data, or the lines of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hf_freeze.config import load_config
from hf_freeze.errors import ConfigError
from hf_freeze.run.planning import prepared_data
from hf_freeze.tasks import get_task
from hf_freeze.training.uploading import CONFIG_FILE

_NUM_ROWS: Final = 32
_ASK: Final = "Name a file with a text on each line: `--rows FILE`."

Row = str | tuple[str, str]


def rows_of_file(path: str) -> tuple[Row, ...]:
    """Returns the lines of a file; a tab parts the two texts of a pair.

    Args:
        path: The file.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigError(
            f"--rows: this file cannot be read; got {path!r}. The system says: {reason}. {_ASK}"
        ) from error
    return tuple(_pair(line) for line in lines[:_NUM_ROWS])


def rows_of_run(run: str) -> tuple[Row, ...]:
    """Returns the first rows that a run evaluated on, else of those that it trained on.

    Args:
        run: The folder of the run.

    Raises:
        ConfigError: There is no config of a run, or its data cannot be read.
    """
    config_file = Path(run, CONFIG_FILE)
    if not config_file.is_file():
        raise ConfigError(f"--rows: there are no rows to compare on; got no {CONFIG_FILE} in {run!r}. {_ASK}")
    try:
        config = load_config(str(config_file))
        data = prepared_data(get_task(config.model.task), config.data)
    except ConfigError as error:
        raise ConfigError(
            f"--rows: the data of the run cannot be read; got {str(config_file)!r}. It says: {error} {_ASK}"
        ) from error
    split = data.validation if data.validation is not None else data.test if data.test is not None else data.train
    chosen = split.select(range(min(_NUM_ROWS, len(split))))
    columns = [list(map(str, chosen[name])) for name in data.text_columns]
    return tuple(columns[0]) if len(columns) == 1 else tuple(zip(columns[0], columns[1], strict=True))


def _pair(line: str) -> Row:
    first, tab, second = line.partition("\t")
    return (first, second) if tab else line
