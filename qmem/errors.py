"""The few exceptions.  Each carries one line that says what is wrong, and one that says what to do."""

EXIT_OK = 0
EXIT_FINDING = 1
EXIT_USAGE = 2
EXIT_CANNOT = 3
EXIT_OUT_OF_MEMORY = 4
EXIT_INTERRUPTED = 130


class QmemError(Exception):
    """Something the user must know.  ``hint`` says what to do about it; ``exit_code`` is the process's answer."""

    exit_code = EXIT_USAGE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(QmemError):
    """What was asked is wrong or contradicts itself: a flag, a job file, a config.json, a name."""


class UnsupportedError(UsageError):
    """What was asked is sensible but not built yet.  It is refused by name, never approximated in silence."""


class UnavailableError(QmemError):
    """This machine cannot answer: a missing extra, no GPU, no network."""

    exit_code = EXIT_CANNOT
