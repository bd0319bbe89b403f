"""What a user can do wrong: one class a kind of mistake, each printed as one sentence, exit code 2.

Everything else that fails is ours: a traceback and exit code 1.
"""

LONGEST = 600  # letters of what was found


class UserError(Exception):
    """Something the user can mend.

    Parameters
    ----------
    source
        The file, directory or flag it is about.
    found
        What was found there, and why that does not work.
    remedy
        What to type or do next.
    row
        0-based row of the particle table, where one row is to blame.
    """

    def __init__(self, source: str, found: str, remedy: str, row: int | None = None) -> None:
        super().__init__(source, found, remedy, row)  # args, so that the error crosses process borders by pickle
        self.source, self.found, self.remedy, self.row = str(source), found, remedy, row

    def __str__(self) -> str:
        place = self.source if self.row is None else f"{self.source}, row {self.row}"
        found = self.found if len(self.found) <= LONGEST else f"{self.found[:LONGEST]}..."
        sentence = f"{place}: {found}; {self.remedy}."
        return "".join(letter if letter.isprintable() else " " for letter in sentence)  # what a file holds is quoted


class ParticleFileError(UserError):
    """A STAR, MRC or pickle file that cannot be read as particles."""


class StoreError(UserError):
    """A particle store that is missing, unfinished or damaged."""


class StoreAwayError(StoreError):
    """A particle store, or a file of it, that is not there, or whose storage does not answer."""


class StorageError(UserError):
    """Storage that does not read or write: away, full, or not ours to write."""


class ConfigError(UserError):
    """A setting that is out of range, unknown, or disagrees with an earlier one."""


class RunError(UserError):
    """A run directory that is missing or lacks what a command needs."""


class ResourceError(UserError):
    """A cluster or machine that cannot run what was asked."""
