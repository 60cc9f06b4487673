# SPDX-License-Identifier: GPL-2.0-or-later
"""The traces that come with the package, for a look without recording; `examples/record_samples.py` makes them anew."""

from importlib.resources import as_file, files
from typing import Final

from vmaweld.trace.store import Trace, TraceError, open_trace

_DIRECTORY: Final = "sample_traces"
_SUFFIX: Final = ".trace"


def sample_names() -> list[str]:
    """The names of all samples, sorted.

    >>> sample_names()
    ['forking-workers', 'growing-buffers', 'small-compile']
    """
    names = (entry.name for entry in files("vmaweld.trace").joinpath(_DIRECTORY).iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def open_sample(name: str) -> Trace:
    """Open the sample `name`.

    Raises:
        TraceError: there is none of that name; the message lists those there are.

    """
    if name not in sample_names():
        raise TraceError(f"there is no sample {name!r}: choose {', '.join(sample_names())}")
    with as_file(files("vmaweld.trace").joinpath(_DIRECTORY, name + _SUFFIX)) as path:
        return open_trace(path)
