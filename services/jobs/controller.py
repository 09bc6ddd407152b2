"""The controller: a detached Ray actor for each job that runs it from its specification to its end.

It holds no state of its own that matters: a restarted controller reads the job store, the replay queue's rows and the version store, finds
the running workers by name, and goes on from the newest version (rules 10 and 11).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from learner.errors import InputError
from services.jobs.crew import Crew
from services.jobs.errors import JobCancelled, JobFailure
from services.jobs.evaluations import Evaluator
from services.jobs.feedback import PreferenceRenderer
from services.jobs.feedback_intake import FeedbackDesk
from services.jobs.intake import Intake, SelfPlayIntake
from services.jobs.journal import Journal
from services.jobs.layout import JobPaths
from services.jobs.loop import SelfPlayLoop
from services.jobs.offline import OfflineIntake
from services.jobs.pairs import PreparedPairs
from services.jobs.placement import demands
from services.jobs.records import JobError
from services.jobs.rendering import PromptRenderer
from services.jobs.report import write_report
from services.jobs.spec import JobSpec
from services.jobs.state import JobState, StateConflict
from services.jobs.store import JobStore
from services.jobs.validate import ValidatedJob, validate_job
from workers import cluster, logs
from workers.capacity import check_capacity
from workers.fleet import Fleet


def controller_name(job_id: str) -> str:
    """The actor name of a job's controller."""
    return f"{job_id}-controller"


class JobController:
    """One job's controller.

    Args:
        job_id: the job.
        database_url: the job store's.
        home: Sparring's home on the data node.
        worker_extension: vLLM's worker extension, where the operator replaced it.
    """

    def __init__(self, job_id: str, database_url: str, home: Path, worker_extension: str | None = None) -> None:
        self.paths = JobPaths(home, job_id)
        self.log = logs.write_to(self.paths.logs, "controller")
        self.store = JobStore(database_url)
        self.job_id, self.worker_extension = job_id, worker_extension
        self.journal = Journal(self.store, job_id, self.log)

    async def ping(self) -> bool:
        """Whether it is there."""
        return True

    async def run(self) -> None:
        """Run the job to its end, write down how it ended, and leave. It leaves whatever happens: a job whose controller is gone is put back."""
        try:
            await self._run_to_its_end()
        except StateConflict as conflict:
            self.log.info("the job has been ended meanwhile: %s", conflict)
        except Exception:  # the job store failed, which may have been the fault to write down
            self.log.exception("how the job ended was not written down")
        try:
            await self._report()
        except Exception:
            self.log.exception("the trackers were not told the end")
        finally:
            cluster.leave()

    async def _report(self) -> None:
        """Write the report, and let the trackers finish with it."""
        try:
            await asyncio.to_thread(write_report, self.store, self.job_id, self.paths.report)
        except Exception as error:
            self.log.exception("the report was not written")
            self.journal.warning(f"the report was not written: {error}")
        await asyncio.to_thread(self.journal.end_tracking, self.paths.report)

    async def _run_to_its_end(self) -> None:
        """Run the job and write down how it ended.

        Raises:
            StateConflict: somebody ended the job before that.
        """
        try:
            await self._run()
            self.journal.progress(1.0, "done")
            self.journal.state(JobState.SUCCEEDED)
        except StateConflict:
            raise
        except JobCancelled:
            self.journal.state(JobState.CANCELLED, "cancelled; the newest version is kept")
        except InputError as error:
            self._failed("invalid_job", str(error), None)
        except JobFailure as failure:
            self._failed(failure.code, failure.message, failure.param)
        except TimeoutError as error:  # its message names the setting
            self._failed("timeout", str(error), None)
        except Exception as error:  # the job must not hang in `running` because of a fault of ours
            self.log.exception("the job failed")
            self._failed("internal_error", f"{type(error).__name__}: {error}", None)

    async def _run(self) -> None:
        self.journal.state(JobState.VALIDATING)
        job = await asyncio.to_thread(self._validate)
        spec = job.spec
        self.journal.track(spec, self.paths)
        for warning in job.warnings:
            self.journal.event("warning", warning)
        prompts = job.prepared
        if prompts is None:
            raise JobFailure("no_prompts", "the prompts could not be rendered; see the warnings", "prompts")
        self.journal.event(
            "prompts",
            f"{len(prompts)} {'pairs' if spec.offline else 'prompts'}; {prompts.skipped} skipped and {prompts.truncated} truncated as too long",
            prompts=len(prompts),
            skipped=prompts.skipped,
            truncated=prompts.truncated,
        )
        crew = Crew(
            self.job_id,
            spec,
            self.paths,
            prompts=prompts.token_ids,
            uncompared=job.uncompared,
            worker_extension=self.worker_extension,
        )
        check_capacity(demands(crew.bundles), cluster.nodes())
        fleet = Fleet(spec.resources.fleet, tuple(member.name for member in crew.samplers))
        intake: Intake
        if isinstance(prompts, PreparedPairs):
            intake = OfflineIntake(spec, prompts, crew, self.journal)
        else:
            feedback = await asyncio.to_thread(self._feedback, job, crew) if spec.feedback_groups else None
            intake = SelfPlayIntake(spec, prompts, fleet, crew, self.journal, feedback)
        evaluator = Evaluator(spec, job.evaluation, crew, fleet, self.journal)
        loop = SelfPlayLoop(spec, crew, fleet, intake, evaluator, self.journal)
        try:
            await loop.run()
            counts = await intake.counts()
            self.journal.event(
                "counts",
                f"groups: {counts.sentence()}",
                balanced=counts.balanced,
                **counts.model_dump(mode="json"),
            )
        finally:
            await loop.stop()

    def _validate(self) -> ValidatedJob:
        spec = JobSpec.model_validate(self.store.get(self.job_id).spec)
        return validate_job(spec, Path("/"), deep=True, compare_rendering=False)

    def _feedback(self, job: ValidatedJob, crew: Crew) -> FeedbackDesk:
        assert job.model is not None, "a deep validation reads the model"
        renderer = PromptRenderer(job.model.folder, allow_transformers=True)
        return FeedbackDesk(job.spec, PreferenceRenderer(job.spec, job.model, renderer), crew, self.journal)

    def _failed(self, code: str, message: str, param: str | None) -> None:
        self.journal.state(JobState.FAILED, error=JobError(code=code, message=message, param=param))
