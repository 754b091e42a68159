"""The training loop."""

from __future__ import annotations

import signal
from types import FrameType

from compress.engine.method import Method
from compress.engine.micro_batch import describe_micro_batch
from compress.engine.run import Run
from compress.engine.signals import handle_signals
from compress.engine.trainable import DivergedError
from compress.errors import Interrupted


def train(method: Method, run: Run) -> None:
    """Train until the run is done; resumes from its latest checkpoint if there is one.

    A diverged run returns to its last good state with lower learning rates, up to `max_rollbacks` times.

    Raises:
        Interrupted: After SIGINT, SIGTERM or SIGHUP, with the state saved.
        DivergedError: If a loss or a model is not finite, after the last rollback.
    """
    run.seed_all()
    method.setup(run)
    announce_micro_batch(run)
    run.seed_per_rank()
    if not run.resume() and run.schedule.max_rollbacks:
        run.keep_initial_state()
    stop_request = StopRequest()
    with run.display, handle_signals(stop_request.handle):
        try:
            while not train_until_divergence(method, run, stop_request):
                pass
        finally:
            run.close()


def announce_micro_batch(run: Run) -> None:
    """Print what micro-batches change, if there are any."""
    size = run.accelerator.micro_batch
    if size is not None:
        nets = {name: model.net for name, model in run.trainables.items()}
        run.display.print_line(describe_micro_batch(size, run.batch_size, nets))


def train_until_divergence(method: Method, run: Run, stop_request: StopRequest) -> bool:
    """Train to the end and return True, or roll back and return False."""
    step = run.step
    try:
        while run.step == 0 or run.progress < 1:  # a short time limit can pass before the first step
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
        reason = divergence_reason(error, run)
        # A process that is alone in leaving a step cannot return: the others wait for it.
        can_return = error.on_all_ranks or run.accelerator.world_size == 1
        if not can_return or len(run.rollbacks) >= run.schedule.max_rollbacks:
            raise divergence_error(step, reason, run) from error
        run.roll_back(step, reason)
        run.display.print_line(
            f"step {step}: {reason}; returned to step {run.step} with {run.learning_rate_factor:g} times the learning "
            f"rates (rollback {len(run.rollbacks)} of {run.schedule.max_rollbacks})."
        )
        return False
    return True


def save_and_interrupt(run: Run, signum: int) -> None:
    """Save a checkpoint and raise Interrupted."""
    run.save()
    raise Interrupted(
        signum,
        f"stopped by {signal.Signals(signum).name} at step {run.step}; the checkpoint is saved, run the same command "
        "again to resume.",
    )


def divergence_reason(error: DivergedError, run: Run) -> str:
    """Return the text of the error, the models that are not finite, and what the teacher has to do with it."""
    broken = [name for name, model in run.trainables.items() if not model.is_finite()]
    models = f"parameters that are not finite: {', '.join(broken)}" if broken else ""
    return "; ".join(text for text in (str(error), models, run.describe_teacher_fault()) if text)


def divergence_error(step: int, reason: str, run: Run) -> DivergedError:
    """Return the final error, with the number of rollbacks and the latest good checkpoint."""
    latest = run.checkpoints.latest_manifest()
    good = f"the last good checkpoint is {latest}" if latest else "there is no checkpoint yet"
    count = len(run.rollbacks)
    tried = f" after {count} rollback{'s' * (count > 1)}" if count else ""
    return DivergedError(f"step {step}: {reason}{tried}; {good}. Try a lower learning rate, or --precision 32.")


class StopRequest:
    """Number of the signal that requested a stop, or 0."""

    signum = 0

    def handle(self, signum: int, _: FrameType | None) -> None:
        self.signum = signum
