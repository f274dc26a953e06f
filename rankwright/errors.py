"""One error tree. Every error also inherits the standard exception it replaces, so `except ValueError` keeps working.

Messages are one sentence with subject, value found, value wanted and next action, for example:
`Candidate list of query 'q17' is empty; retrieval returned 0 documents. Raise --depth or check the index path.`

Each class carries the exit code that the command line ends with (docs/cli.md): 2 bad arguments, 3 missing prerequisite,
4 missing resource, 5 invalid data, 6 provider or runtime failure, 7 partial success, 8 a model worse than its
reference or baseline, 9 a limit of the user's was reached.
"""

from __future__ import annotations


class RankwrightError(Exception):
    """Root of all errors raised on purpose by rankwright."""

    exit_code = 6
    told_by_first = False
    """Whether the first of several processes ends with the same error, so that the others need not tell it."""


class ConfigurationError(RankwrightError, ValueError):
    """An argument or setting is wrong, unknown, or does not fit another one."""

    exit_code = 2


class MissingDependencyError(RankwrightError, ImportError):
    """An optional package is not installed. The message holds the exact pip command."""

    exit_code = 3


class ResourceNotFoundError(RankwrightError, FileNotFoundError):
    """A file, folder, model or run that was named does not exist."""

    exit_code = 4


class DataError(RankwrightError, ValueError):
    """A row or file of the user's data is malformed. The message names file and line."""

    exit_code = 5


class ModelError(RankwrightError, ValueError):
    """A model folder is unusable: wrong hash, wrong head, non-finite scores, code in the repository."""

    exit_code = 5


class OutOfMemoryError(ModelError, MemoryError):
    """What was to be computed at once needs more memory than there is; less of it may do."""


class TooManyPassagesError(ConfigurationError):
    """A reader was given more passages than it has room for."""


class ReaderError(RankwrightError, RuntimeError):
    """The reader cannot be used: unreachable, refused the key, or failed more often than allowed."""


class BudgetExceededError(ReaderError):
    """The account behind the reader is out of quota."""


class LimitReachedError(RankwrightError, RuntimeError):
    """What comes next could exceed a limit that the user set (`--max-reader-calls`, `--max-cost`, `--max-hours`). The
    run stopped before it and can go on."""

    exit_code = 9


class RewardError(RankwrightError, RuntimeError):
    """The user's reward function raised, or returned something that is not a reward. The cause is kept."""


class IncompleteQuestionError(RankwrightError, RuntimeError):
    """A reward that compares all documents and rollouts of a question was shown only some of them."""


class StorageError(RankwrightError, OSError):
    """A file cannot be written or is damaged: full disk, read-only folder, broken database."""


class ResumeError(ConfigurationError):
    """A run cannot be resumed: its settings changed or no complete checkpoint is left."""


class TrainingError(RankwrightError, RuntimeError):
    """Training cannot go on: non-finite loss, or nothing to learn from."""


class OverloadedError(RankwrightError, RuntimeError):
    """The queue has no room for a request; nothing of it was done. `retry_after` says when there may be room."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(RankwrightError, TimeoutError):
    """A request's time was over before its last document was scored."""


class QuestionTooLongError(ConfigurationError):
    """A question alone leaves no room for a document in what the model reads of both together, so that nothing would be
    read of any document."""

    exit_code = 5


class UnavailableError(RankwrightError, RuntimeError):
    """Nothing can be scored at the moment: the model is not loaded yet, hangs, failed, or the process is ending."""


class ScorerError(RankwrightError, RuntimeError):
    """The model failed on a request, or gave it scores that are not finite. The cause is kept."""
