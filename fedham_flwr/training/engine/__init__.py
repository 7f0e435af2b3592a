"""One cohort as one program: what many clients ask for is carried out as one computation."""
