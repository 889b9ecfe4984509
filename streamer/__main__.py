"""The program `streamer`, also as `python -m streamer`."""

from __future__ import annotations

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. A Ctrl-C in the first second, which are imports, ends the program without a traceback too."""
    interrupted = signal.getsignal(signal.SIGINT)
    if interrupted is signal.default_int_handler:  # else it is ignored, as that of a job in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from streamer import cli

    signal.signal(signal.SIGINT, interrupted)
    cli.main()


if __name__ == "__main__":
    main()
