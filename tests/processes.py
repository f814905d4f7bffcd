"""A command in a process of its own that starts in no time: a fork of this one, which has imported torch already."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import zoo.cli.session  # noqa: F401  (what the fork is to have)
from zoo.cli import main


class Done(NamedTuple):
    """What is left of a process."""

    code: int
    out: str
    err: str


class Fork:
    """Run ``zoo ARGS`` in a fork, in ``folder``.

    Args:
        args: as on the command line.
        folder: working directory; the streams are kept beside it.
        env: environment variables to set.
        before: called in the fork before the command, to set limits, say.
    """

    def __init__(
        self,
        *args: object,
        folder: Path,
        env: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        self._streams = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                code = self._run([str(a) for a in args], folder, env or {}, before)
                if "wandb" in sys.modules:  # as it does when an interpreter ends: its own process must not stay
                    sys.modules["wandb"].teardown()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def _run(self, args: list[str], folder: Path, env: Mapping[str, str], before: Callable[[], object] | None) -> int:
        for fd, path in enumerate(self._streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), fd)
        sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
        sys.argv = ["zoo", *args]
        sys.dont_write_bytecode = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        os.environ.update(env)
        if before:
            before()
        try:
            return main(args) or 0
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except BaseException:
            traceback.print_exc()
            return 1

    def wait(self, seconds: float = 240) -> Done:
        """Wait for the end; kill and fail when it takes too long."""
        end = time.monotonic() + seconds
        while (ended := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"still running after {seconds} s; stderr: {self._streams[1].read_text()}")
            time.sleep(0.01)
        return Done(os.waitstatus_to_exitcode(ended[1]), *(path.read_text() for path in self._streams))


TWO = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.accelerator", "cpu")


def on_two(here: Path, *args: object) -> list[Done]:
    """Run a command on two processes, as a launcher does that has started them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forks = []
    for rank in range(2):
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
        folder = here / f"rank{rank}"
        folder.mkdir(exist_ok=True)
        forks.append(Fork(*args, *TWO, folder=folder, env=env))
    return [fork.wait() for fork in forks]
