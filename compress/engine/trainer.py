"""The training loop."""

from __future__ import annotations

import os
import signal
from types import FrameType

from compress.engine.method import Method
from compress.engine.run import Run
from compress.engine.signals import handle_signals
from compress.engine.trainable import DivergedError
from compress.errors import Interrupted


def train(method: Method, run: Run) -> None:
    """Train until the run is done; resumes from its latest checkpoint if there is one.

    Raises:
        Interrupted: After SIGINT or SIGTERM, with the state saved.
        DivergedError: If a loss or a model is not finite.
    """
    run.seed_all()
    method.setup(run)
    run.seed_per_rank()
    run.resume()
    stop_request = StopRequest()
    with run.display, handle_signals(stop_request.handle):
        step = run.step
        try:
            while run.progress < 1:
                step = run.step + 1
                run.set_progress(run.progress)
                losses = method.step()
                run.finish_step(losses)
                if run.is_evaluation_due():
                    run.evaluate()
                if run.is_save_due():
                    run.save()
                signum = int(run.accelerator.broadcast_float(float(stop_request.signum)))
                if signum:
                    save_and_interrupt(run, signum)
            run.finish()
        except DivergedError as error:
            raise divergence_error(error, run, step) from error
        finally:
            run.close()


def save_and_interrupt(run: Run, signum: int) -> None:
    """Save a checkpoint and raise Interrupted."""
    run.save()
    raise Interrupted(
        signum,
        f"stopped by {signal.Signals(signum).name} at step {run.step}; the checkpoint is saved, run the same command "
        "again to resume.",
    )


def divergence_error(error: DivergedError, run: Run, step: int) -> DivergedError:
    """Return the error with the step, the models that are not finite, and the latest good checkpoint."""
    broken = [name for name, model in run.trainables.items() if not model.is_finite()]
    models = f"; parameters that are not finite: {', '.join(broken)}" if broken else ""
    latest = run.checkpoints.latest_manifest()
    good = f"the last good checkpoint is {latest}" if latest else "there is no checkpoint yet"
    return DivergedError(f"step {step}: {error}{models}; {good}. Try a lower learning rate, or --precision 32.")


class StopRequest:
    """Number of the signal that requested a stop, or 0; a second signal ends the process at once."""

    signum = 0

    def handle(self, signum: int, _: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum
