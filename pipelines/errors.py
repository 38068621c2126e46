"""The two kinds of trouble that are told to a person in one sentence instead of a stack trace.

`UserError` is something the user can mend: a wrong key, a missing file, no bubblewrap. The command line prints its
text and exits with code 2. Everything else propagates: a bug must look like a bug.
"""


class UserError(Exception):
    """One clear sentence that names the file, row or key, and what was expected."""


class InfrastructureError(UserError):
    """The machine cannot do what was asked (sandbox unavailable, disk full): a rollout it hits is masked, not failed."""
