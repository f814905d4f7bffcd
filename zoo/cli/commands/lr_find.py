"""``zoo lr-find``: sweep the learning rate and suggest one."""

from __future__ import annotations

from typing import Any

name = "lr-find"
help = "sweep the learning rate (LR range test) and print the option that sets the suggested one"
needs_trainer = True


def add_arguments(parser: Any) -> None:
    pass


def run(cli: Any) -> None:
    from zoo.callbacks import LRFinder
    from zoo.errors import UserError

    finder = cli.config_init.get("lr_finder") or LRFinder(dirpath=".")
    finder.apply = False
    # It sweeps when the fit starts, before the callback that ends the fit.
    cli.trainer.callbacks.append(finder)

    def print_suggestion(trainer: Any, module: Any) -> None:
        if finder.result is None or finder.result.chosen is None:
            raise UserError("no learning rate to suggest: try another range, --lr_finder.min_lr, --lr_finder.max_lr")
        if trainer.is_global_zero:
            print(f"to use it, add: --model.lr {finder.result.chosen:.3g}")

    cli.trainer.run_at_start(cli.model, cli.datamodule, print_suggestion)
