"""Run AReaL's PPOTrainer (1.0.4, unchanged) through one phase, in AReaL's own interpreter.

    run_areal.py FOLDER          config.yaml and train.jsonl are there; checkpoints/ and at the end model/ will be

AReaL overwrites its one recoverable checkpoint in place. Here each one is set aside when it is whole, as
`global_step_<n>` with a tracker file, so that it can be published while training goes on; and put back where AReaL
looks, for the time of loading, when a run goes on. Statistics of a step, which AReaL draws as a table, are printed as
JSON besides.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "areal-step "
LATEST = "latest_checkpointed_iteration.txt"
STARTUP_SECONDS = 300.0
CHECKPOINT, INFO = "recover_checkpoint", "recover_info"


class Keeper:
    """AReaL's recoverable checkpoint, and the ones that are set aside."""

    def __init__(self, folder: Path, config: Any) -> None:
        from areal.utils.recover import RecoverHandler  # type: ignore[import-not-found]
        from areal.utils.saver import Saver  # type: ignore[import-not-found]

        where = (config.experiment_name, config.trial_name, config.cluster.fileroot)
        self._kept = folder / "checkpoints"
        self._places = {
            CHECKPOINT: Path(Saver.get_recover_checkpoint_path(*where)),
            INFO: Path(RecoverHandler.recover_info_path(*where)),
        }

    def put_back(self) -> None:
        """The newest one, where AReaL looks."""
        if step := self._newest():
            self._move({self._kept / f"global_step_{step}" / name: place for name, place in self._places.items()})

    def set_aside(self, step: int | None = None) -> None:
        """As a checkpoint of its own. step: of a new one; None: the one that was put back."""
        number = step or self._newest()
        if not number:
            return
        self._move({place: self._kept / f"global_step_{number}" / name for name, place in self._places.items()})
        unfinished = self._kept / f"{LATEST}.new"
        unfinished.write_text(str(number))
        os.replace(unfinished, self._kept / LATEST)

    def _newest(self) -> int:
        """Its step; 0: there is none."""
        tracker = self._kept / LATEST
        return int(tracker.read_text()) if tracker.is_file() else 0

    @staticmethod
    def _move(pairs: dict[Path, Path]) -> None:
        for source, target in pairs.items():
            if target.is_dir():
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)


def watch(trainer: Any, keeper: Keeper) -> None:
    """Set each whole checkpoint aside, and print each step's statistics."""
    dump, commit = trainer.recover_handler.dump, trainer.stats_logger.commit

    def dump_aside(engine: Any, step_info: Any, *args: Any, **kwargs: Any) -> None:
        dump(engine, step_info, *args, **kwargs)
        if trainer.recover_handler.last_step_info is step_info:  # it was due
            keeper.set_aside(step_info.global_step + 1)

    def commit_aloud(epoch: int, step: int, global_step: int, data: Any) -> None:
        commit(epoch, step, global_step, data)
        stats = {
            name: float(value) for row in (data if isinstance(data, list) else [data]) for name, value in row.items()
        }
        print(f"{MARK}{json.dumps({'step': global_step + 1, 'stats': stats})}", flush=True)

    trainer.recover_handler.dump, trainer.stats_logger.commit = dump_aside, commit_aloud


def patient() -> None:
    """AReaL gives a worker 30 seconds to answer, and no setting for it: importing torch from a cold disk takes
    longer.
    """
    from areal.infra import LocalScheduler  # type: ignore[import-not-found]

    initialize = LocalScheduler.__init__

    def patiently(self: Any, *args: Any, **kwargs: Any) -> None:
        initialize(self, *args, **{"startup_timeout": STARTUP_SECONDS, **kwargs})

    LocalScheduler.__init__ = patiently


def read_rows(path: Path) -> list[dict[str, Any]]:
    """JSON lines: they end with a line feed alone, whatever else `str.splitlines` takes for an end (U+0085, U+2028)."""
    with open(path, encoding="utf-8", newline="\n") as stream:
        return [json.loads(line) for line in stream]


def main(folder: Path) -> None:
    """Load, train, write the weights."""
    from areal import PPOTrainer  # type: ignore[import-not-found]
    from areal.api import SaveLoadMeta  # type: ignore[import-not-found]
    from areal.api.cli_args import PPOConfig, load_expr_config  # type: ignore[import-not-found]
    from datasets import Dataset

    config, _ = load_expr_config(["--config", str(folder / "config.yaml")], PPOConfig)
    rows = read_rows(folder / "train.jsonl")
    keeper = Keeper(folder, config)
    keeper.put_back()
    patient()
    with PPOTrainer(config, train_dataset=Dataset.from_list(rows)) as trainer:
        keeper.set_aside()
        watch(trainer, keeper)
        workflow = {
            "reward_fn": "stages.lib.engines.programs.reward.verified",
            "gconfig": config.gconfig,
            "tokenizer": config.tokenizer_path,
            "enable_thinking": False,
        }
        trainer.train(workflow="areal.workflow.rlvr.RLVRWorkflow", workflow_kwargs=workflow)
        unfinished = folder / "model.unfinished"
        trainer.actor.save(
            SaveLoadMeta(
                path=str(unfinished),
                weight_format="hf",
                with_optim=False,
                tokenizer=trainer.tokenizer,
                processor=None,
                base_model_path=config.actor.path,
            )
        )
        unfinished.rename(folder / "model")


def guarded(action: Callable[[Path], None], folder: Path) -> None:
    """Act and end the process, whatever threads and servers of AReaL's keep it alive; the stage ends what is left of
    its group.
    """
    status = 0
    try:
        action(folder)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    guarded(main, Path(sys.argv[1]))
