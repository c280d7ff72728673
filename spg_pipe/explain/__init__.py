"""Why: the atoms behind a decision, and what each atom is."""
