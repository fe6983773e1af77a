"""The menu of students: one line a kind. Specs only; importing them loads no torch."""

from typing import Annotated

from pydantic import Field

from tasks.menu import MENU
from tasks.students.causal import Causal as Causal
from tasks.students.classifier import Classifier as Classifier

StudentSpec = Annotated[Causal | Classifier, Field(discriminator="name"), MENU]
