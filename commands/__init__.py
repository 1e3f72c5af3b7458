"""What the verbs of the command line do, one file each; ``pluralign.train`` lists them. Nothing imports from here."""

__all__: list[str] = []
