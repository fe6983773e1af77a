"""The menu of teachers: one line a way to ask."""

from infra.settings import settings
from tasks.teachers.answers import Answer as Answer
from tasks.teachers.answers import Question as Question
from tasks.teachers.hf import LocalTeacher as LocalTeacher
from tasks.teachers.hf import manifest_of
from tasks.teachers.logged import LoggedTeacher as LoggedTeacher
from tasks.teachers.openai import EndpointTeacher as EndpointTeacher

Teacher = EndpointTeacher | LocalTeacher | LoggedTeacher


def teacher_for(workload: str | None) -> Teacher:
    """The teacher that FLYWHEEL_TEACHER names, if it can teach this workload; for None, whatever it can teach.

    An endpoint or a general model teaches any; a local model with a manifest (the seedling is one) knows its own
    workload alone. Without a teacher that can be asked, there is the log.
    """
    name = settings().teacher_base
    if name.startswith(("http://", "https://")):
        return EndpointTeacher.of(settings())
    if not name or workload not in (None, manifest_of(name).get("workload", workload)):
        return LoggedTeacher()
    return LocalTeacher(name)
