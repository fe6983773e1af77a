"""The menu of teachers: one line a way to ask."""

from infra.settings import settings
from tasks.teachers.endpoint import EndpointTeacher as EndpointTeacher
from tasks.teachers.local import LocalTeacher as LocalTeacher
from tasks.teachers.local import manifest_of

Teacher = EndpointTeacher | LocalTeacher


def teacher_for(workload: str | None) -> Teacher | None:
    """The teacher that FLYWHEEL_TEACHER names, if it can teach this workload; for None, whatever it can teach.

    An endpoint or a general model teaches any; a local model with a manifest (the seedling is one) knows its own
    workload alone. Without a teacher, students imitate the logged answers.
    """
    name = settings().teacher_base
    if name.startswith(("http://", "https://")):
        return EndpointTeacher(name, settings().teacher_model, settings().teacher_key.get_secret_value())
    if not name or workload not in (None, manifest_of(name).get("workload", workload)):
        return None
    return LocalTeacher(name)
