"""The menu of students: one line a kind. Specs only; importing them loads no torch."""

from tasks.students.causal import Causal as Causal

StudentSpec = Causal
